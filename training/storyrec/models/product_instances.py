"""Product clicks to learn from, for the methods with a loss in both domains.

Legend: B batch, N product instances, P product sequence, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from storyrec.losses import click_loss
from storyrec.models.click_model import Features


@dataclass(frozen=True)
class ProductInstances:
    """A product that the user clicked and one that she did not, for N instances of a batch.

    Attributes:
        rows_N: which instances of the batch, integers, each at most once.
        clicked_ND: features of the clicked products.
        other_ND: features of the others.
    """

    rows_N: Tensor
    clicked_ND: Tensor
    other_ND: Tensor


def draw_product_instances(features: Features) -> ProductInstances:
    """Draw a click from each product sequence, and another user's click against it.

    The logs hold no product that was shown and not clicked. So the clicks that were drawn are
    permuted among the instances; where an instance gets one of its own user, or of its own sequence, it
    is left out.

    Args:
        features: of a batch; draws from torch's global generator.
    """
    mask_BP = features.product_blocks_BP > 0
    rows_N = mask_BP.any(dim=1).nonzero().squeeze(1)
    products_NPD, mask_NP, user_rows_N = features.product_BPD[rows_N], mask_BP[rows_N], features.user_rows_B[rows_N]
    places_N = (torch.rand(len(rows_N), device=rows_N.device) * mask_NP.sum(dim=1)).long()
    clicked_ND = products_NPD[torch.arange(len(rows_N), device=rows_N.device), places_N]

    order_N = torch.randperm(len(rows_N), device=rows_N.device)
    other_ND = clicked_ND[order_N]
    # within a batch each distinct item is extracted once: the same item has the very same features
    own_N = ((products_NPD == other_ND.unsqueeze(1)).all(dim=-1) & mask_NP).any(dim=1)
    kept_N = ~own_N & (user_rows_N != user_rows_N[order_N])
    return ProductInstances(rows_N[kept_N], clicked_ND[kept_N], other_ND[kept_N])


def product_click_loss(clicked_N: Tensor, other_N: Tensor) -> Tensor:
    """Cross-entropy of the logits of clicked products and of as many others, a scalar; 0 where there is none."""
    if not len(clicked_N):
        return clicked_N.new_zeros(())
    labels_N = torch.cat([torch.ones_like(clicked_N), torch.zeros_like(other_N)])
    return click_loss(torch.cat([clicked_N, other_N]), labels_N)
