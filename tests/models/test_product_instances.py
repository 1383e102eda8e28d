"""Product clicks of other users stand in for products that were not clicked."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from drawn_features import drawn_features
from storyrec.models.click_model import Features
from storyrec.models.product_instances import draw_product_instances, product_click_loss


def features_of(products: list[list[int]], *, users: list[int]) -> Features:
    """Impressions whose products are known by the first of their features; padding looks like product 1."""
    length = max(map(len, products))
    product_BPD = torch.ones(len(products), length, 3)
    blocks_BP = torch.zeros(len(products), length, dtype=torch.int64)
    for row, numbers in enumerate(products):
        product_BPD[row, : len(numbers), 0] = torch.tensor(numbers, dtype=torch.float32)
        blocks_BP[row, : len(numbers)] = 1
    return replace(
        drawn_features(),
        target_BD=torch.zeros(len(products), 3),
        product_BPD=product_BPD,
        product_blocks_BP=blocks_BP,
        user_rows_B=torch.tensor(users),
    )


def drawn(features: Features) -> list[tuple[int, int, int]]:
    """Row, clicked product and other product of the instances of a draw."""
    instances = draw_product_instances(features)
    return [
        (int(row), int(clicked[0]), int(other[0]))
        for row, clicked, other in zip(instances.rows_N, instances.clicked_ND, instances.other_ND, strict=True)
    ]


def test_others_are_clicks_of_other_users_and_of_no_own_sequence() -> None:
    products, users = [[1, 2], [2, 3], [4, 5, 6], [], [7], [1, 6, 8]], [1, 2, 1, 3, 4, 4]
    features = features_of(products, users=users)
    torch.manual_seed(0)
    met = set()
    for _ in range(300):
        draw = drawn(features)
        assert [row for row, _, _ in draw] == sorted({row for row, _, _ in draw}), "each row at most once"
        for row, clicked, other in draw:
            assert clicked in products[row]
            assert other not in products[row]
            met.add((row, other))
    # what user A may meet: everything that users B have clicked
    expected = {
        (row, other)
        for row, own in enumerate(products)
        for their_row, theirs in enumerate(products)
        if own and users[row] != users[their_row]
        for other in theirs
        if other not in own
    }
    assert met == expected


def test_every_click_of_a_sequence_is_drawn_about_equally() -> None:
    features = features_of([[1, 2, 3, 4, 5], [9]], users=[1, 2])
    torch.manual_seed(0)
    clicked = [clicked for _ in range(2_000) for row, clicked, _ in drawn(features) if row == 0]
    counts = np.bincount(clicked, minlength=6)[1:]
    assert counts.sum() == pytest.approx(1_000, abs=100)  # every other permutation of two swaps them
    assert counts.min() > 130  # expected: 200


def test_one_user_alone_has_no_instances_and_no_loss() -> None:
    assert drawn(features_of([[1, 2], [3]], users=[4, 4])) == []
    assert product_click_loss(torch.zeros(0), torch.zeros(0)).item() == 0.0


def test_product_click_loss_is_the_mean_cross_entropy() -> None:
    clicked, other = [0.4, -1.0, 2.0], [0.1, 3.0, -0.5]
    terms = [-math.log(1 / (1 + math.exp(-z))) for z in clicked]
    terms += [-math.log(1 - 1 / (1 + math.exp(-z))) for z in other]
    loss = product_click_loss(torch.tensor(clicked), torch.tensor(other))
    assert loss.item() == pytest.approx(sum(terms) / 6, rel=1e-5)
