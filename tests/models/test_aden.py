"""Eq. 9-10 recomputed naively; padding, batches and shared items never change a score."""

import math

import numpy as np
import pytest
import torch

from storyrec.data.batches import Batch
from storyrec.models.aden import Aden
from storyrec.models.attention import TargetAttention
from storyrec.models.click_model import ClickModel, Features, distinct
from storyrec.models.extractors import Extractors, RawItems
from storyrec.schema import Domain

WIDTH, HEADS, BLOCKS, LENGTH = 8, 4, 5, 6


@pytest.fixture
def ranker() -> Aden:
    torch.manual_seed(0)
    module = Aden(width=WIDTH, num_heads=HEADS, num_time_blocks=BLOCKS, head_widths=(12, 5), dropout=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.7)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    lengths = {"story": (6, 1, 0, 3, 0), "product": (2, 6, 4, 0, 0)}
    sequences = []
    for numbers in lengths.values():
        blocks_BL = torch.randint(1, BLOCKS + 2, (5, LENGTH), generator=generator)
        blocks_BL[torch.arange(LENGTH) >= torch.tensor(numbers).unsqueeze(1)] = 0
        sequences += [torch.randn(5, LENGTH, WIDTH, generator=generator), blocks_BL]
    return (torch.randn(5, WIDTH, generator=generator), *sequences)


def features(*tensors: torch.Tensor) -> Features:
    """Of the five tensors that ADEN reads."""
    nothing_B = torch.zeros(len(tensors[0]), dtype=torch.int64)
    return Features(*tensors, nothing_B, nothing_B, torch.zeros_like(tensors[2]))


def naive_attention(attention: TargetAttention, target_D: torch.Tensor, items_LD: torch.Tensor) -> torch.Tensor:
    """Eq. 9 and 10 as printed: project every item, one head after the other."""
    if not len(items_LD):
        return torch.zeros(WIDTH)
    heads, width = [], WIDTH // HEADS
    for head in range(HEADS):
        rows = slice(head * width, (head + 1) * width)
        query_E = attention.query.weight[rows] @ target_D + attention.query.bias[rows]
        keys_LE = items_LD @ attention.key.weight[rows].T + attention.key.bias[rows]
        values_LE = items_LD @ attention.value.weight[rows].T + attention.value.bias[rows]
        weights_L = torch.softmax(keys_LE @ query_E / math.sqrt(width), dim=0)
        heads.append(weights_L @ values_LE)
    return torch.cat(heads)


def test_ranker_is_equations_9_and_10(ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    target_BD, story_BSD, story_blocks_BS, product_BPD, product_blocks_BP = inputs
    logits_B = ranker(features(*inputs))
    for row in range(len(target_BD)):
        users = []
        for attention, items_LD, blocks_L in (
            (ranker.story_attention, story_BSD[row], story_blocks_BS[row]),
            (ranker.product_attention, product_BPD[row], product_blocks_BP[row]),
        ):
            real_L = blocks_L > 0
            timed_LD = items_LD[real_L] + ranker.time_blocks.weight[blocks_L[real_L]]
            users.append(naive_attention(attention, target_BD[row], timed_LD))
        hidden = torch.cat([*users, target_BD[row]])
        first, second, last = (layer for layer in ranker.head if isinstance(layer, torch.nn.Linear))
        expected = last(torch.relu(second(torch.relu(first(hidden)))))
        torch.testing.assert_close(logits_B[row], expected[0], atol=1e-5, rtol=1e-5)


def head_widths(ranker: Aden) -> tuple[int, ...]:
    return tuple(layer.in_features for layer in ranker.head if isinstance(layer, torch.nn.Linear))


def only(domain: Domain, ranker: Aden) -> Aden:
    """An ADEN that reads one domain, with that domain's attention out of `ranker` and a head of its own."""
    torch.manual_seed(2)
    module = Aden(
        width=WIDTH,
        num_heads=HEADS,
        num_time_blocks=BLOCKS,
        head_widths=(12, 5),
        dropout=0.5,
        reads=frozenset({domain}),
    )
    module.time_blocks.load_state_dict(ranker.time_blocks.state_dict())
    for attention, theirs in (
        (module.story_attention, ranker.story_attention),
        (module.product_attention, ranker.product_attention),
    ):
        if attention is not None:
            attention.load_state_dict(theirs.state_dict())
    return module.eval()


@pytest.mark.parametrize("domain", Domain)
def test_one_domain_alone_is_what_counts(domain: Domain, ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    single = only(domain, ranker)
    assert head_widths(single) == (2 * WIDTH, 12, 5)
    assert head_widths(ranker) == (3 * WIDTH, 12, 5)
    assert {name.split(".")[0] for name, _ in single.named_parameters()} == {
        "time_blocks", "head", f"{domain.name.lower()}_attention",
    }  # fmt: skip

    target_BD, *_ = inputs
    read = ranker.users(features(*inputs))[domain]
    expected_B = single.head(torch.cat([read, target_BD], dim=-1)).squeeze(-1)
    logits_B = single(features(*inputs))
    torch.testing.assert_close(logits_B, expected_B)
    assert list(single.attention_weights(features(*inputs))) == [domain]

    # the story domain's tensors are 1 and 2, the product domain's 3 and 4
    first, other = (1, 3) if domain == Domain.STORY else (3, 1)
    changed = list(inputs)
    changed[other], changed[other + 1] = torch.randn(5, LENGTH, WIDTH), torch.ones(5, LENGTH, dtype=torch.int64)
    assert torch.equal(single(features(*changed)), logits_B)
    changed[first] = torch.randn(5, LENGTH, WIDTH)
    assert not torch.allclose(single(features(*changed)), logits_B)


@pytest.fixture
def gated(ranker: Aden) -> Aden:
    """The same ADEN with a gate, whose weights are drawn."""
    torch.manual_seed(3)
    module = Aden(width=WIDTH, num_heads=HEADS, num_time_blocks=BLOCKS, head_widths=(12, 5), dropout=0.5, gated=True)
    module.load_state_dict(ranker.state_dict(), strict=False)
    with torch.no_grad():
        module.gate.weight.normal_(std=0.5)
        module.gate.bias.normal_()
    return module.eval()


def test_an_undecided_gate_changes_nothing(gated: Aden, ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    assert not torch.allclose(gated(features(*inputs)), ranker(features(*inputs)))
    with torch.no_grad():
        gated.gate.weight.zero_()
        gated.gate.bias.fill_(0.7)
    torch.testing.assert_close(gated(features(*inputs)), ranker(features(*inputs)))


def test_gate_weighs_the_users_of_each_impression(gated: Aden, ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    logits_B = gated(features(*inputs))
    story_BD, product_BD = ranker.users(features(*inputs))
    for row, target_D in enumerate(inputs[0]):
        read = torch.cat([story_BD[row], product_BD[row], target_D]).tolist()
        scores = [
            sum(w * x for w, x in zip(weights, read, strict=True)) + bias
            for weights, bias in zip(gated.gate.weight.tolist(), gated.gate.bias.tolist(), strict=True)
        ]
        for_story = 1 / (1 + math.exp(scores[1] - scores[0]))
        hidden = torch.cat([2 * for_story * story_BD[row], 2 * (1 - for_story) * product_BD[row], target_D])
        torch.testing.assert_close(logits_B[[row]], gated.head(hidden), atol=1e-5, rtol=1e-4)


def test_empty_histories_are_zero_vectors(ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    target_BD, story_BSD, _, *_ = inputs
    nothing_BL = torch.zeros(5, LENGTH, dtype=torch.bool)
    for module in (ranker.train(), ranker.eval()):
        user_BD = module.story_attention(target_BD, story_BSD, nothing_BL)
        assert torch.equal(user_BD, torch.zeros(5, WIDTH))
    story_BSD.requires_grad_()
    ranker.story_attention(target_BD, story_BSD, nothing_BL).sum().backward()
    assert torch.equal(story_BSD.grad, torch.zeros_like(story_BSD))


def test_padding_never_changes_a_score(ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    target_BD, story_BSD, story_blocks_BS, product_BPD, product_blocks_BP = inputs
    logits_B = ranker(features(*inputs))
    noisy = [
        torch.where((blocks > 0).unsqueeze(-1), items, torch.full_like(items, 1e6))
        for items, blocks in ((story_BSD, story_blocks_BS), (product_BPD, product_blocks_BP))
    ]
    assert torch.equal(ranker(features(target_BD, noisy[0], story_blocks_BS, noisy[1], product_blocks_BP)), logits_B)
    longer = torch.nn.functional.pad(story_BSD, (0, 0, 0, 3), value=9.0)
    blocks = torch.nn.functional.pad(story_blocks_BS, (0, 3))
    torch.testing.assert_close(ranker(features(target_BD, longer, blocks, product_BPD, product_blocks_BP)), logits_B)


def test_permuting_the_batch_permutes_the_scores(ranker: Aden, inputs: tuple[torch.Tensor, ...]) -> None:
    order_B = torch.tensor([3, 0, 4, 1, 2])
    shuffled = features(*(part[order_B] for part in inputs))
    torch.testing.assert_close(ranker(shuffled), ranker(features(*inputs))[order_B])


def test_dropout_hits_the_weights_behind_the_value_bias_too(ranker: Aden) -> None:
    """With one item in the sequence a head is either scaled as a whole or gone."""
    attention = ranker.story_attention.train()
    target_BD, item_B1D = torch.randn(400, WIDTH), torch.randn(1, 1, WIDTH).expand(400, 1, WIDTH)
    with torch.no_grad():
        user_BHE = attention(target_BD, item_B1D, torch.ones(400, 1, dtype=torch.bool)).view(400, HEADS, -1)
        full_HE = attention.eval()(target_BD[:1], item_B1D[:1], torch.ones(1, 1, dtype=torch.bool)).view(HEADS, -1)
    gone_BH = (user_BHE == 0).all(-1)
    assert 0.4 < gone_BH.float().mean() < 0.6
    torch.testing.assert_close(user_BHE[~gone_BH], (full_HE / 0.5).expand(400, HEADS, -1)[~gone_BH])


def test_distinct_items_once_equals_every_slot_for_itself(ranker: Aden) -> None:
    generator = np.random.default_rng(0)
    extractors = Extractors(num_words=20, width=WIDTH, max_words=4, visual_width=7).eval()
    catalogs = {}
    for domain in Domain:
        tokens_NW = generator.integers(1, 20, size=(9, 4)).astype(np.int32)
        tokens_NW[np.arange(4) >= generator.integers(0, 5, size=(9, 1))] = 0
        visual_NV = generator.normal(size=(9, 7)).astype(np.float16)
        tokens_NW[0], visual_NV[0], visual_NV[5] = 0, 0, 0
        catalogs[domain] = RawItems.of(tokens_NW, visual_NV, domain=domain)
    blocks_BL = generator.integers(0, BLOCKS + 2, size=(2, 5, LENGTH))
    slots_BL = np.where(blocks_BL > 0, generator.integers(1, 9, size=blocks_BL.shape), 0)
    batch = Batch(
        generator.integers(1, 9, size=5),
        slots_BL[0],
        blocks_BL[0],
        slots_BL[1],
        blocks_BL[1],
        np.zeros(5, np.float32),
        np.zeros(5, np.int64),
    )
    stories, products = catalogs[Domain.STORY], catalogs[Domain.PRODUCT]

    def every(items: RawItems, rows: np.ndarray) -> torch.Tensor:
        flat = rows.ravel()
        visual = torch.from_numpy(items.visual_raw_NV[flat]).float()
        features = extractors(torch.from_numpy(items.tokens_NW[flat]), visual, domain=items.domain)
        return features.item_ND.view(*rows.shape, WIDTH)

    expected_B = ranker(features(
        every(stories, batch.story_rows_B),
        every(stories, slots_BL[0]), torch.from_numpy(blocks_BL[0]),
        every(products, slots_BL[1]), torch.from_numpy(blocks_BL[1]),
    ))  # fmt: skip
    logits_B = ClickModel(extractors, ranker)(batch, stories=stories, products=products)
    torch.testing.assert_close(logits_B, expected_B, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(scores_B.sum(), extractors.words.weight)[0] for scores_B in (logits_B, expected_B)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_distinct_is_unique_with_inverse() -> None:
    rows = np.random.default_rng(0).integers(0, 50, size=200)
    expected = np.unique(rows, return_inverse=True)
    for ours, theirs in zip(distinct(rows, num_rows=60), expected, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_attention_are_those_of_its_arithmetic(training: bool) -> None:
    torch.manual_seed(3)
    attention = TargetAttention(width=WIDTH, num_heads=HEADS, dropout=0.5).double().train(training)
    target_BD = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    sequence_BLD = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    mask_BL = torch.arange(LENGTH) < torch.tensor([[LENGTH], [2], [0]])
    names = [name for name, _ in attention.named_parameters()]

    def user(target_BD: torch.Tensor, sequence_BLD: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)  # the same dropout at every call
        inputs = (target_BD, sequence_BLD, mask_BL)
        return torch.func.functional_call(attention, dict(zip(names, weights, strict=True)), inputs)

    weights = [weight.detach().clone().requires_grad_() for weight in attention.parameters()]
    assert torch.autograd.gradcheck(user, (target_BD, sequence_BLD, *weights))
