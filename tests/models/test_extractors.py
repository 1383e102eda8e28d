"""Eq. 2-4 recomputed naively, and what padding, empty titles and missing covers may not change."""

import numpy as np
import pytest
import torch

from storyrec.models.extractors import Extractors, RawItems
from storyrec.schema import Domain

WIDTH, MAX_WORDS, NUM_WORDS = 8, 6, 30


@pytest.fixture(params=[True, False], ids=["positions", "no positions"])
def extractors(request: pytest.FixtureRequest) -> Extractors:
    torch.manual_seed(0)
    module = Extractors(
        num_words=NUM_WORDS, width=WIDTH, max_words=MAX_WORDS, visual_width=5, word_positions=request.param, dropout=0.5
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        module.words.weight[0] = 0.0
    return module.eval()


TOKENS_NW = torch.tensor(
    [[3, 4, 5, 0, 0, 0], [7, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4], [1, 2, 3, 0, 0, 0]],
    dtype=torch.int32,
)
VISUAL_NV = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
VISUAL_NV[1] = 0.0


def naive_words(extractors: Extractors, tokens_W: torch.Tensor) -> list[torch.Tensor]:
    words = []
    for place, word in enumerate(tokens_W.tolist()):
        if word:
            row = extractors.words.weight[word]
            words.append(row if extractors.positions is None else row + extractors.positions.weight[place])
    return words


def test_story_title_is_equations_2_to_4(extractors: Extractors) -> None:
    textual_ND = extractors(TOKENS_NW, VISUAL_NV, domain=Domain.STORY).textual_ND
    w2 = extractors.attention_score.weight
    w1, b1 = extractors.attention_hidden.weight, extractors.attention_hidden.bias
    for item, tokens_W in enumerate(TOKENS_NW):
        words = naive_words(extractors, tokens_W)
        expected_D = torch.zeros(WIDTH)
        for d in range(WIDTH if words else 0):
            scores = [(w2 @ torch.tanh(w1 @ word + b1))[d] for word in words]  # Eq. 2
            exponents = [torch.exp(score) for score in scores]
            for word, exponent in zip(words, exponents, strict=True):
                expected_D[d] += exponent / sum(exponents) * word[d]  # Eq. 3 and 4
        torch.testing.assert_close(textual_ND[item], expected_D, atol=1e-5, rtol=1e-5)


def test_product_title_is_the_mean_of_its_words(extractors: Extractors) -> None:
    textual_ND = extractors(TOKENS_NW, VISUAL_NV, domain=Domain.PRODUCT).textual_ND
    for item, tokens_W in enumerate(TOKENS_NW):
        words = naive_words(extractors, tokens_W)
        expected_D = torch.stack(words).mean(0) if words else torch.zeros(WIDTH)
        torch.testing.assert_close(textual_ND[item], expected_D, atol=1e-6, rtol=1e-5)


def test_visual_is_one_shared_projection_without_bias(extractors: Extractors) -> None:
    for domain in Domain:
        visual_ND = extractors(TOKENS_NW, VISUAL_NV, domain=domain).visual_ND
        torch.testing.assert_close(visual_ND, VISUAL_NV @ extractors.visual_projection.weight.T)
        assert not visual_ND[1].any()


@pytest.mark.parametrize("domain", list(Domain))
def test_padding_and_company_never_change_a_feature(extractors: Extractors, domain: Domain) -> None:
    together_ND = extractors(TOKENS_NW, VISUAL_NV, domain=domain).item_ND
    for item in range(len(TOKENS_NW)):
        num_words = int((TOKENS_NW[item] != 0).sum())
        for width in (max(1, num_words), MAX_WORDS):
            alone_1D = extractors(TOKENS_NW[[item], :width], VISUAL_NV[[item]], domain=domain).item_ND
            torch.testing.assert_close(alone_1D[0], together_ND[item], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("domain", list(Domain))
def test_titles_without_words_give_zeros_and_finite_gradients(extractors: Extractors, domain: Domain) -> None:
    empty_NW = torch.zeros((3, MAX_WORDS), dtype=torch.int32)
    features = extractors.train()(empty_NW, None, domain=domain)
    assert not features.item_ND.any()
    mixed = extractors(TOKENS_NW, VISUAL_NV, domain=domain)
    (features.item_ND.sum() + mixed.item_ND.sum()).backward()
    gradients = [parameter.grad for parameter in extractors.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not extractors.words.weight.grad[0].any()  # the padding row stays zero


def test_match_vector_is_title_beside_cover(extractors: Extractors) -> None:
    features = extractors(TOKENS_NW, VISUAL_NV, domain=Domain.STORY)
    assert torch.equal(features.match_NM[:, :WIDTH], features.textual_ND)
    assert torch.equal(features.match_NM[:, WIDTH:], features.visual_ND)


def test_raw_items_equal_the_plain_call(extractors: Extractors) -> None:
    covers_NV = VISUAL_NV.numpy().astype(np.float16)
    covers_NV[[0, 3]] = 0.0
    items = RawItems.of(TOKENS_NW.numpy(), covers_NV, domain=Domain.STORY)
    assert items.has_cover_N.tolist() == [False, False, True, False, True]
    rows_N = np.array([4, 0, 4, 2])
    expected = extractors(TOKENS_NW[rows_N], torch.from_numpy(covers_NV[rows_N]).float(), domain=Domain.STORY)
    torch.testing.assert_close(extractors.extract(items, rows_N).item_ND, expected.item_ND)
    none = extractors.extract(items, np.array([0, 3]))  # rows without any cover
    assert not none.visual_ND.any()
    assert none.textual_ND.any()
