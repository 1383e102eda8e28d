"""What every click-through method keeps to, whatever it computes."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from drawn_features import NUM_BLOCKS, NUM_CATEGORIES, NUM_USERS, WIDTH, drawn_features, take
from storyrec.experiments.methods import BEYOND, ORIGINALS, TABLE_4, TABLE_6, Method, Sizes
from storyrec.models.click_model import Features, Ranker
from storyrec.schema import Domain

METHODS = {method.name: method for table in (TABLE_4, ORIGINALS, TABLE_6, BEYOND) for method in table}
SIZES = Sizes(
    width=WIDTH,
    num_heads=4,
    num_time_blocks=NUM_BLOCKS,
    sequence_length=15,
    head_widths=(12, 8),
    dropout=0.2,
    num_users=NUM_USERS,
    num_categories=NUM_CATEGORIES,
)


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def ranker(request: pytest.FixtureRequest) -> Ranker:
    method: Method = request.param
    torch.manual_seed(0)
    ranker = method.build(SIZES)
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            parameter.normal_(std=0.4)
            if "time_block" in name or name.endswith("categories.weight"):
                parameter[0] = 0.0  # the padding's row
    return ranker.eval()


def with_padding(features: Features, value: float) -> Features:
    """The same with this value wherever there is padding."""
    return replace(
        features,
        story_BSD=features.story_BSD.masked_fill((features.story_blocks_BS == 0).unsqueeze(-1), value),
        product_BPD=features.product_BPD.masked_fill((features.product_blocks_BP == 0).unsqueeze(-1), value),
    )


def test_padding_never_changes_a_score(ranker: Ranker) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    assert logits_B.shape == (len(features.target_BD),)
    torch.testing.assert_close(ranker(with_padding(features, 1e6)), logits_B, atol=1e-5, rtol=1e-5)


def test_longer_padding_never_changes_a_score(ranker: Ranker) -> None:
    features = drawn_features()
    longer = replace(
        features,
        **{name: F.pad(getattr(features, name), (0, 0, 0, 5), value=3.0) for name in ("story_BSD", "product_BPD")},
        **{
            name: F.pad(getattr(features, name), (0, 5))
            for name in ("story_blocks_BS", "product_blocks_BP", "story_categories_BS")
        },
    )
    torch.testing.assert_close(ranker(longer), ranker(features), atol=1e-5, rtol=1e-5)


def test_each_impression_is_scored_for_itself(ranker: Ranker) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    for row in range(len(logits_B)):
        torch.testing.assert_close(ranker(take(features, [row])), logits_B[[row]], atol=1e-5, rtol=1e-5)


def test_impressions_with_the_same_sequences_share_them(ranker: Ranker) -> None:
    several = take(drawn_features(), [5, 1, 5, 0, 1, 5])
    several = replace(several, target_BD=drawn_features(1).target_BD)
    clicked_B = torch.tensor([1.0, 0, 0, 1, 0, 1])
    losses, gradients = [], []
    for first_B in (None, torch.tensor([0, 1, 0, 3, 1, 0])):
        torch.manual_seed(0)  # DIEN's loss draws
        loss = ranker.loss(replace(several, first_B=first_B), clicked_B)
        gradients.append(torch.autograd.grad(loss, list(ranker.parameters()), allow_unused=True))
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0])
    for shared, alone in zip(*gradients, strict=True):
        if alone is not None:
            torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-4)


def test_domains_that_are_not_read_do_not_count(ranker: Ranker) -> None:
    features = drawn_features()
    unread = {
        Domain.STORY: ("story_BSD", "story_categories_BS", "story_blocks_BS"),
        Domain.PRODUCT: ("product_BPD", "product_blocks_BP"),
    }
    nothing = {
        name: torch.zeros_like(getattr(features, name))
        for domain, names in unread.items()
        if domain not in ranker.reads
        for name in names
    }
    assert torch.equal(ranker(replace(features, **nothing)), ranker(features))


@pytest.mark.parametrize("training", [True, False])
def test_without_any_click_scores_losses_and_gradients_are_finite(ranker: Ranker, training: bool) -> None:
    features = drawn_features()
    empty = {
        part.name: torch.zeros_like(getattr(features, part.name))
        for part in fields(Features)
        if part.name not in {"target_BD", "user_rows_B", "target_categories_B", "first_B"}
    }
    features = replace(features, **empty)
    features.target_BD.requires_grad_()
    loss = ranker.train(training).loss(features, torch.tensor([1.0, 0, 0, 1, 0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [features.target_BD.grad, *(part.grad for part in ranker.parameters() if part.grad is not None)]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(ranker(features)).all()


def test_every_weight_is_learned(ranker: Ranker) -> None:
    torch.manual_seed(1)
    features = drawn_features()
    ranker.train().loss(features, torch.tensor([1.0, 0, 0, 1, 0, 1])).backward()
    for name, parameter in ranker.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # a softmax does not see a bias that is added to all of its scores
        assert parameter.grad.any() or name.endswith(("attention.key.bias", "activation.rest.1.bias")), name
