"""Gradient reversal flips and scales the gradient of the features, and nothing else."""

import math

import pytest
import torch

from storyrec.losses import domain_adversarial_loss
from storyrec.models.dual import Dual, reversal_strength, reverse_gradient
from storyrec.models.extractors import Extractors, ItemFeatures


def test_reversal_keeps_values_and_flips_gradients() -> None:
    features_ND = torch.randn(4, 3, requires_grad=True)
    weight_ND = torch.randn(4, 3)
    output_ND = reverse_gradient(features_ND, strength=0.7)
    assert torch.equal(output_ND, features_ND)
    (output_ND * weight_ND).sum().backward()
    torch.testing.assert_close(features_ND.grad, -0.7 * weight_ND)


def test_strength_rises_from_zero_to_one() -> None:
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(0.25) == pytest.approx(2 / (1 + math.exp(-2.5)) - 1)
    assert 0.9999 < reversal_strength(1.0) < 1.0


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_classifiers_learn_at_full_strength_while_extractors_are_pushed_back(strength: float) -> None:
    torch.manual_seed(0)
    model = Dual(Extractors(num_words=5, width=6, max_words=3, visual_width=4))
    visual_BD, textual_BD = (torch.randn(8, 6, requires_grad=True) for _ in range(2))
    logits = model(ItemFeatures(visual_BD, textual_BD), strength=strength)
    (domain_adversarial_loss(logits.visual_B[:4], logits.visual_B[4:])
     + domain_adversarial_loss(logits.textual_B[:4], logits.textual_B[4:])).backward()  # fmt: skip

    for features_BD, classifier in (
        (visual_BD, model.visual_classifier),
        (textual_BD, model.textual_classifier),
    ):
        plain_BD = features_BD.detach().clone().requires_grad_()
        copy = torch.nn.Linear(6, 1)
        copy.load_state_dict(classifier.state_dict())
        scores_B = copy(plain_BD).squeeze(-1)
        domain_adversarial_loss(scores_B[:4], scores_B[4:]).backward()
        torch.testing.assert_close(features_BD.grad, -strength * plain_BD.grad)
        torch.testing.assert_close(classifier.weight.grad, copy.weight.grad)  # not reversed, not scaled
        torch.testing.assert_close(classifier.bias.grad, copy.bias.grad)
