"""DUAL: pre-training of the extractors by contrast and by deceiving domain classifiers.

Paper: Sec. III-B, Eq. 5-8. Legend: B pairs of a batch, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from storyrec.models.extractors import Extractors, ItemFeatures


@dataclass(frozen=True)
class DomainLogits:
    """What the two domain classifiers say of each item, [B], before the logistic function."""

    textual_B: Tensor
    visual_B: Tensor


class Dual(nn.Module):
    """The extractors and one domain classifier per modality, a logistic unit D -> 1.

    Paper: Sec. III-B, D_v and D_t.
    """

    def __init__(self, extractors: Extractors) -> None:
        super().__init__()
        self.extractors = extractors
        self.textual_classifier = nn.Linear(extractors.width, 1)
        self.visual_classifier = nn.Linear(extractors.width, 1)

    def forward(self, features: ItemFeatures, *, strength: float) -> DomainLogits:
        """Classify items by domain behind a gradient reversal (Eq. 7 and 8 in one backward pass).

        Args:
            features: of the items, from `extractors`.
            strength: factor of the reversed gradient, see `reversal_strength`.
        """
        return DomainLogits(
            self.textual_classifier(reverse_gradient(features.textual_ND, strength=strength)).squeeze(-1),
            self.visual_classifier(reverse_gradient(features.visual_ND, strength=strength)).squeeze(-1),
        )


def reversal_strength(progress: float) -> float:
    """`2 / (1 + exp(-10 p)) - 1`: from 0 at the start of the training (p = 0) towards 1 at its end (p = 1)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


def reverse_gradient(features_ND: Tensor, *, strength: float) -> Tensor:
    """The same values, but the gradient that flows back is multiplied by `-strength`."""
    reversed_ND: Tensor = _GradientReversal.apply(features_ND, strength)  # type: ignore[no-untyped-call]
    return reversed_ND


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features_ND: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]
        return features_ND.view_as(features_ND)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None  # type: ignore[attr-defined]
