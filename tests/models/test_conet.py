"""CoNet recomputed naively: two towers, and one matrix per layer that carries over in both directions."""

import math

import pytest
import torch

from drawn_features import NUM_PRODUCT_CLICKS, NUM_USERS, WIDTH, drawn_features
from storyrec.models.conet import CollaborativeCrossNetwork
from storyrec.models.product_instances import draw_product_instances

CLICKED_B = torch.tensor([1.0, 0, 0, 1, 0, 1])


@pytest.fixture
def ranker() -> CollaborativeCrossNetwork:
    torch.manual_seed(0)
    module = CollaborativeCrossNetwork(num_users=NUM_USERS, width=WIDTH, tower_widths=(7, 5), dropout=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def naive_towers(
    ranker: CollaborativeCrossNetwork, user_D: torch.Tensor, story_D: torch.Tensor, product_D: torch.Tensor
) -> tuple[float, float]:
    story, product = [*user_D.tolist(), *story_D.tolist()], [*user_D.tolist(), *product_D.tolist()]

    def unit(weights: torch.Tensor, inputs: list[float]) -> float:
        return sum(w * x for w, x in zip(weights.tolist(), inputs, strict=True))

    for layer, crossing in enumerate(ranker.crossings):
        own, theirs = ranker.story_layers[layer], ranker.product_layers[layer]
        next_story = [
            max(0.0, unit(own.weight[i], story) + own.bias[i].item() + unit(crossing.weight[i], product))
            for i in range(len(own.bias))
        ]
        product = [
            max(0.0, unit(theirs.weight[i], product) + theirs.bias[i].item() + unit(crossing.weight[i], story))
            for i in range(len(theirs.bias))
        ]
        story = next_story
    return (
        unit(ranker.story_output.weight[0], story) + ranker.story_output.bias.item(),
        unit(ranker.product_output.weight[0], product) + ranker.product_output.bias.item(),
    )


def last_product(product_PD: torch.Tensor, num_clicks: int) -> torch.Tensor:
    return product_PD[num_clicks - 1] if num_clicks else torch.zeros(WIDTH)


def test_a_story_is_scored_beside_the_product_clicked_last(ranker: CollaborativeCrossNetwork) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    for row, num_clicks in enumerate(NUM_PRODUCT_CLICKS):
        user_D = ranker.users.vectors.weight[features.user_rows_B[row]]
        last_D = last_product(features.product_BPD[row], num_clicks)
        expected, _ = naive_towers(ranker, user_D, features.target_BD[row], last_D)
        assert logits_B[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_loss_is_the_cross_entropy_of_stories_and_of_products(ranker: CollaborativeCrossNetwork) -> None:
    features = drawn_features()
    torch.manual_seed(5)
    loss = ranker.loss(features, CLICKED_B)
    torch.manual_seed(5)
    products = draw_product_instances(features)
    assert len(products.rows_N) >= 2

    def cross_entropy(logit: float, clicked: float) -> float:
        return math.log1p(math.exp(-logit if clicked else logit))

    story_terms = [
        cross_entropy(z, clicked) for z, clicked in zip(ranker(features).tolist(), CLICKED_B.tolist(), strict=True)
    ]
    product_terms = []
    for items_ND, clicked in ((products.clicked_ND, 1.0), (products.other_ND, 0.0)):
        for row, item_D in zip(products.rows_N.tolist(), items_ND, strict=True):
            user_D = ranker.users.vectors.weight[features.user_rows_B[row]]
            _, logit = naive_towers(ranker, user_D, features.target_BD[row], item_D)
            product_terms.append(cross_entropy(logit, clicked))
    expected = sum(story_terms) / len(story_terms) + sum(product_terms) / len(product_terms)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
