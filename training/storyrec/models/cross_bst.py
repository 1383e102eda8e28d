"""Cross-BST: BST over the clicks of both domains, a story being an item like any other.

Paper: Sec. IV-A. Legend: B batch, L both sequences in one.
"""

from dataclasses import replace

import torch
from torch import Tensor

from storyrec.models.bst import BehaviorSequenceTransformer
from storyrec.models.click_model import BOTH_DOMAINS, Features


class CrossDomainTransformer(BehaviorSequenceTransformer):
    """BST whose sequence holds the clicks of both domains."""

    reads = BOTH_DOMAINS

    def user_and_target(self, features: Features) -> tuple[Tensor, Tensor]:
        """The user representation and the target's, [B, D] each; the user is zero without clicks."""
        return super().user_and_target(with_merged_sequence(features))


def with_merged_sequence(features: Features) -> Features:
    """The same with the clicks of both domains in the story sequence.

    Oldest first; of clicks in the same time block the stories come first. Categories stay as they were.
    """
    items_BLD = torch.cat([features.story_BSD, features.product_BPD], dim=1)
    blocks_BL = torch.cat([features.story_blocks_BS, features.product_blocks_BP], dim=1)
    # blocks count back from the impression, and padding, 0, goes to the end
    blocks_BL, order_BL = blocks_BL.sort(dim=1, descending=True, stable=True)
    items_BLD = items_BLD.gather(1, order_BL.unsqueeze(-1).expand_as(items_BLD))
    return replace(features, story_BSD=items_BLD, story_blocks_BS=blocks_BL)
