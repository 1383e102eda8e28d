"""CMF recomputed naively: one vector per user, and both domains in the loss."""

import math

import pytest
import torch

from drawn_features import NUM_USERS, WIDTH, drawn_features
from storyrec.models.cmf import CollectiveMatrixFactorization
from storyrec.models.product_instances import draw_product_instances

CLICKED_B = torch.tensor([1.0, 0, 0, 1, 0, 1])


@pytest.fixture
def ranker() -> CollectiveMatrixFactorization:
    torch.manual_seed(0)
    return CollectiveMatrixFactorization(num_users=NUM_USERS, width=WIDTH).eval()


def inner(left: torch.Tensor, right: torch.Tensor) -> float:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def cross_entropy(logit: float, clicked: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if clicked else 1 - probability)


def test_loss_is_the_cross_entropy_of_stories_and_of_products(ranker: CollectiveMatrixFactorization) -> None:
    features, vectors = drawn_features(), ranker.users.vectors.weight
    torch.manual_seed(5)
    loss = ranker.loss(features, CLICKED_B)
    torch.manual_seed(5)
    products = draw_product_instances(features)
    assert len(products.rows_N) >= 2

    story_terms = [
        cross_entropy(inner(vectors[user], target), clicked)
        for user, target, clicked in zip(features.user_rows_B, features.target_BD, CLICKED_B, strict=True)
    ]
    product_terms = [
        cross_entropy(inner(vectors[features.user_rows_B[row]], item), clicked)
        for items, clicked in ((products.clicked_ND, 1.0), (products.other_ND, 0.0))
        for row, item in zip(products.rows_N, items, strict=True)
    ]
    expected = sum(story_terms) / len(story_terms) + sum(product_terms) / len(product_terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_users_product_clicks_decide_about_stories(ranker: CollectiveMatrixFactorization) -> None:
    """Stories and products point in two directions; each user clicks products of her own one."""
    features = drawn_features()
    users_B = torch.tensor([1, 1, 2, 2])
    side_BD = torch.zeros(4, WIDTH)
    side_BD[:2, 0] = side_BD[2:, 1] = 1.0
    features = type(features)(
        target_BD=side_BD[[0, 2, 0, 2]],
        story_BSD=torch.zeros(4, 1, WIDTH),
        story_blocks_BS=torch.zeros(4, 1, dtype=torch.int64),
        product_BPD=side_BD.unsqueeze(1),
        product_blocks_BP=torch.ones(4, 1, dtype=torch.int64),
        user_rows_B=users_B,
        target_categories_B=users_B,
        story_categories_BS=users_B.unsqueeze(1),
    )
    optimizer = torch.optim.Adam(ranker.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        ranker.train().loss(features, torch.full((4,), 0.5)).backward()  # no story tells anything
        optimizer.step()
    own, other, other_too, own_too = ranker.eval()(features).tolist()
    assert min(own, own_too) > 0.3 > -0.3 > max(other, other_too)
