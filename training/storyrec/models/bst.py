"""BST: a Transformer block over the story sequence.

Paper: Sec. IV-A, [28]. Legend: B batch, S story sequence, L the sequence that the block reads, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import TransformerBlock, click_head, cut_sequence, masked_mean, time_block_table
from storyrec.schema import Domain


class BehaviorSequenceTransformer(Ranker):
    """One block over item features and time blocks, the mean of its clicks, and the common head.

    Deviates from [28]: the head reads the mean of the clicks, not all of them side by side.

    Args:
        width: d of the item features.
        num_heads: attention heads; must divide `width`.
        hidden_width: of the block's layers per position.
        num_time_blocks: blocks told apart.
        head_widths: hidden layers behind [user; target].
        dropout: share of hidden units dropped in training.
        appended: the block reads the target too, behind the clicks, and the head reads what the block
            made of it, as in [28]; otherwise sequence and target meet in the head.
    """

    reads = frozenset({Domain.STORY})

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        hidden_width: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
        appended: bool = False,
    ) -> None:
        super().__init__()
        self.appended = appended
        self.shares_sequences = not appended
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.block = TransformerBlock(width=width, num_heads=num_heads, hidden_width=hidden_width, dropout=dropout)
        self.head = click_head(2 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        logits_B1: Tensor = self.head(torch.cat(self.user_and_target(features), dim=-1))
        return logits_B1.squeeze(-1)

    def user_and_target(self, features: Features) -> tuple[Tensor, Tensor]:
        """The user representation and the target's, [B, D] each; the user is zero without clicks."""
        if not self.appended:
            return features.per_sequence(self._user), features.target_BD
        sequence_BLD, clicks_BL = self._clicks(features)
        # positions have no order but their time blocks, so the target may stand behind the padding
        sequence_BLD = torch.cat([sequence_BLD, features.target_BD.unsqueeze(1)], dim=1)
        sequence_BLD = self.block(sequence_BLD, F.pad(clicks_BL, (0, 1), value=True))
        return masked_mean(sequence_BLD[:, :-1], clicks_BL), sequence_BLD[:, -1]

    def _user(self, features: Features) -> Tensor:
        sequence_BLD, clicks_BL = self._clicks(features)
        return masked_mean(self.block(sequence_BLD, clicks_BL), clicks_BL)

    def _clicks(self, features: Features) -> tuple[Tensor, Tensor]:
        """The timed items, and where there are any."""
        story_BSD, blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        return story_BSD + self.time_blocks(blocks_BS), blocks_BS > 0
