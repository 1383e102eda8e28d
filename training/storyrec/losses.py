"""The losses of both training stages.

Paper: Sec. III-B (DUAL) and III-C (ADEN). Eq. 6 and 11 are printed without the minus sign of a
cross-entropy; these functions return what is minimised. Legend: B batch, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# inside the root, whose slope is infinite at zero
DISTANCE_EPSILON = 1e-8
TEMPERATURE = 0.25  # of InfoNCE, in units of distance; at 1 it matched worse


def dual_domain_loss(
    story_BD: Tensor,
    product_BD: Tensor,
    other_story_BD: Tensor,
    other_product_BD: Tensor,
    *,
    margin: float,
    squared: bool = False,
) -> Tensor:
    """Pull the items of a pair together and push them from another pair's items.

    Paper: Sec. III-B, Eq. 5 (one modality; the caller adds visual and textual).

    Args:
        story_BD: story features, [B, D] float.
        product_BD: features of the product each story mounts, [B, D] float.
        other_story_BD, other_product_BD: a randomly drawn *other* pair, [B, D] float.
        margin: hinge margin mu, in units of the distance.
        squared: measure the squared Euclidean distance (the authors' code) instead of the
            Euclidean one (the paper).

    Returns:
        Mean loss over the batch, scalar, >= 0; B must not be 0.
    """
    own_B = distance(story_BD, product_BD, squared=squared)
    other_B = distance(other_story_BD, other_product_BD, squared=squared)
    story_to_other_B = distance(story_BD, other_product_BD, squared=squared)
    other_to_product_B = distance(other_story_BD, product_BD, squared=squared)
    loss_B = (
        F.relu(margin + own_B - story_to_other_B)
        + F.relu(margin + own_B - other_to_product_B)
        + F.relu(margin + other_B - story_to_other_B)
        + F.relu(margin + other_B - other_to_product_B)
    )
    return loss_B.mean()


def info_nce_loss(story_BD: Tensor, product_BD: Tensor, related_BB: Tensor) -> Tensor:
    """Tell the product a story mounts from those of the batch's other pairs, and the story from theirs.

    Deviates from the paper: takes the place of Eq. 5 where the settings ask for it; symmetric InfoNCE
    whose similarity is the negative Euclidean distance, since matching measures distances. Squared it
    would not move features that are still short, as they are where words are all there is.

    Args:
        story_BD: story features, [B, D] float.
        product_BD: features of the product each story mounts, [B, D] float.
        related_BB: True where the story of the row mounts the product of the column; such pairs beside the
            diagonal are no negatives.

    Returns:
        Mean over both directions and the batch, scalar, >= 0.
    """
    # the difference of large numbers, so in 32 bits
    with torch.autocast(story_BD.device.type, enabled=False):
        story_BD, product_BD = story_BD.float(), product_BD.float()
        squares_BB = story_BD.square().sum(dim=-1)[:, None] + product_BD.square().sum(dim=-1)[None, :]
        squares_BB = (squares_BB - 2.0 * story_BD @ product_BD.T).clamp(min=0.0)
    similarity_BB = (squares_BB + DISTANCE_EPSILON).sqrt() / -TEMPERATURE
    diagonal_BB = torch.eye(len(story_BD), dtype=torch.bool, device=story_BD.device)
    similarity_BB = similarity_BB.masked_fill(related_BB & ~diagonal_BB, -torch.inf)
    own_B = torch.arange(len(story_BD), device=story_BD.device)
    return (F.cross_entropy(similarity_BB, own_B) + F.cross_entropy(similarity_BB.T, own_B)) / 2


def distance(left_BD: Tensor, right_BD: Tensor, *, squared: bool = False) -> Tensor:
    """Euclidean distance of each row, [B], or its square. Paper: Sec. III-B, d(x, y)."""
    squared_B = (left_BD - right_BD).square().sum(dim=-1)
    return squared_B if squared else (squared_B + DISTANCE_EPSILON).sqrt()


def domain_adversarial_loss(story_logits_B: Tensor, product_logits_B: Tensor) -> Tensor:
    """Cross-entropy of a domain classifier; the story domain is class 0, the product domain class 1.

    Paper: Eq. 6 (one modality), with the minus.

    Returns:
        Mean over all items of both domains, scalar, >= 0; ln 2 for a classifier that knows nothing.
    """
    logits_B = torch.cat([story_logits_B, product_logits_B])
    domains_B = torch.cat([torch.zeros_like(story_logits_B), torch.ones_like(product_logits_B)])
    return F.binary_cross_entropy_with_logits(logits_B, domains_B)


def click_loss(logits_B: Tensor, clicked_B: Tensor) -> Tensor:
    """Binary cross-entropy of the predicted click.

    Paper: Eq. 11, with the minus.

    Args:
        logits_B: scores before the logistic function, [B] float.
        clicked_B: 1.0 where the story was clicked, else 0.0, [B] float.

    Returns:
        Mean over the batch, scalar, >= 0.
    """
    return F.binary_cross_entropy_with_logits(logits_B, clicked_B)
