"""YouTubeNet: the mean of the story sequence against the target.

Paper: Sec. IV-A, [24]. Legend: B batch, S story sequence, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import click_head, cut_sequence, masked_mean, time_block_table
from storyrec.schema import Domain


class YouTubeNet(Ranker):
    """The mean of item features and time blocks, and the common head.

    Args:
        width: d of the item features.
        num_time_blocks: blocks told apart.
        head_widths: hidden layers behind [user; target].
        dropout: share of hidden units dropped in training.
    """

    reads = frozenset({Domain.STORY})
    shares_sequences = True

    def __init__(self, *, width: int, num_time_blocks: int, head_widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.head = click_head(2 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        user_BD = features.per_sequence(self.user)
        logits_B1: Tensor = self.head(torch.cat([user_BD, features.target_BD], dim=-1))
        return logits_B1.squeeze(-1)

    def user(self, features: Features) -> Tensor:
        """The mean of the clicks, [B, D]; zero without clicks."""
        story_BSD, blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        return masked_mean(story_BSD + self.time_blocks(blocks_BS), blocks_BS > 0)
