"""Cross-BST: BST over the clicks of both domains, a story being an item like any other.

Paper: Sec. IV-A. Legend: B batch, L both sequences in one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from storyrec.models.bst import BehaviorSequenceTransformer
from storyrec.models.click_model import Features, Ranker


class CrossDomainTransformer(Ranker):
    """BST whose sequence holds the clicks of both domains.

    Args:
        width: d of the item features.
        num_heads: attention heads; must divide `width`.
        hidden_width: of the block's layers per position.
        num_time_blocks: blocks told apart.
        head_widths: hidden layers behind [user; target].
        dropout: share of hidden units dropped in training.
    """

    shares_sequences = True

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        hidden_width: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.transformer = BehaviorSequenceTransformer(
            width=width,
            num_heads=num_heads,
            hidden_width=hidden_width,
            num_time_blocks=num_time_blocks,
            head_widths=head_widths,
            dropout=dropout,
        )

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        logits_B: Tensor = self.transformer(with_merged_sequence(features))
        return logits_B


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
