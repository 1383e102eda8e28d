"""Eq. 5, 6 and 11 recomputed naively."""

import math

import pytest
import torch

from storyrec.losses import click_loss, distance, domain_adversarial_loss, dual_domain_loss, info_nce_loss


@pytest.mark.parametrize("squared", [False, True])
def test_dual_domain_loss_is_equation_5(squared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    story, product, other_story, other_product = torch.randn(4, 7, 3, generator=generator)

    def d(x: torch.Tensor, y: torch.Tensor) -> float:
        total = sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True))
        return total if squared else math.sqrt(total)

    def hinge(near: float, far: float) -> float:
        return max(0.0, 0.5 + near - far)

    total = 0.0
    for s, p, so, po in zip(story, product, other_story, other_product, strict=True):
        total += hinge(d(s, p), d(s, po)) + hinge(d(s, p), d(so, p))
        total += hinge(d(so, po), d(s, po)) + hinge(d(so, po), d(so, p))
    loss = dual_domain_loss(story, product, other_story, other_product, margin=0.5, squared=squared)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("related", [set(), {(0, 2), (3, 1), (1, 1)}])
def test_info_nce_loss_is_recomputed_pair_by_pair(related: set[tuple[int, int]]) -> None:
    """Of products that a story mounts only its own counts, and of stories that mount a product only its own."""
    generator = torch.Generator().manual_seed(0)
    story, product = torch.randn(2, 5, 3, generator=generator)
    related_BB = torch.eye(5, dtype=torch.bool)
    for pair in related:
        related_BB[pair] = True

    def similarity(i: int, j: int) -> float:
        return -math.dist(story[i].tolist(), product[j].tolist()) / 0.25

    terms = []
    for i in range(5):
        products = [j for j in range(5) if j == i or not related_BB[i, j]]
        stories = [j for j in range(5) if j == i or not related_BB[j, i]]
        own = math.exp(similarity(i, i))
        terms += [-math.log(own / sum(math.exp(similarity(i, j)) for j in products))]
        terms += [-math.log(own / sum(math.exp(similarity(j, i)) for j in stories))]
    loss = info_nce_loss(story, product, related_BB)
    assert loss.item() == pytest.approx(sum(terms) / 10, rel=1e-5)


def test_a_related_pair_is_no_negative_and_has_no_gradient() -> None:
    story = torch.tensor([[0.0, 0.0], [3.0, 0.0]], requires_grad=True)
    product = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = info_nce_loss(story, product, torch.ones(2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0  # nothing is left to tell its own from
    assert torch.equal(story.grad, torch.zeros(2, 2))


def test_distance_has_a_finite_gradient_at_zero() -> None:
    same = torch.ones(2, 3, requires_grad=True)
    distance(same, torch.ones(2, 3)).sum().backward()
    assert torch.isfinite(same.grad).all()
    assert distance(same, torch.ones(2, 3)).max().item() < 1e-3


def test_a_pair_far_from_the_others_costs_nothing() -> None:
    near, far = torch.zeros(1, 2), torch.full((1, 2), 100.0)
    assert dual_domain_loss(near, near, far, far, margin=1.0).item() == 0.0
    # swapped products: every hinge pays margin + distance
    expected = 4 * (1.0 + math.sqrt(20_000.0))
    assert dual_domain_loss(near, far, far, near, margin=1.0).item() == pytest.approx(expected, rel=1e-4)


def test_domain_adversarial_loss_is_equation_6() -> None:
    story_logits, product_logits = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([4.0, -0.5])
    terms = [-math.log(1 - 1 / (1 + math.exp(-z))) for z in story_logits.tolist()]
    terms += [-math.log(1 / (1 + math.exp(-z))) for z in product_logits.tolist()]
    assert domain_adversarial_loss(story_logits, product_logits).item() == pytest.approx(sum(terms) / 5, rel=1e-5)
    nothing = torch.zeros(4)
    assert domain_adversarial_loss(nothing, nothing).item() == pytest.approx(math.log(2))


def test_click_loss_is_equation_11() -> None:
    logits, clicked = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    probabilities = [1 / (1 + math.exp(-z)) for z in logits.tolist()]
    terms = [-math.log(p) if y else -math.log(1 - p) for p, y in zip(probabilities, clicked.tolist(), strict=True)]
    assert click_loss(logits, clicked).item() == pytest.approx(sum(terms) / 3, rel=1e-5)
    assert math.isfinite(click_loss(torch.tensor([500.0]), torch.tensor([0.0])).item())
