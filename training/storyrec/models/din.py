"""DIN: the story sequence weighed by what each of its items has to do with the target.

Paper: Sec. IV-A, [26]. Legend: B batch, S story sequence, D width, A attention width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import click_head, cut_sequence, masked_softmax, time_block_table
from storyrec.schema import Domain


class LocalActivation(nn.Module):
    """A score per item of the sequence from [q; k; q - k; q * k], q the target and k the item.

    The first layer's weights are split by these four parts, which is the same arithmetic without the
    concatenation: the target's share is computed once for the whole sequence.
    """

    def __init__(self, *, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, widths[0])
        self.rest = nn.ModuleList(
            nn.Linear(below, above) for below, above in zip(widths, [*widths[1:], 1], strict=True)
        )

    def forward(self, target_BD: Tensor, sequence_BSD: Tensor) -> Tensor:
        """The scores, [B, S]."""
        query_AD, key_AD, difference_AD, product_AD = self.first.weight.chunk(4, dim=1)
        target_BA = F.linear(target_BD, query_AD + difference_AD, self.first.bias)
        hidden_BSA = (
            F.linear(sequence_BSD, key_AD - difference_AD)
            + F.linear(target_BD.unsqueeze(1) * sequence_BSD, product_AD)
            + target_BA.unsqueeze(1)
        )
        for layer in self.rest:
            hidden_BSA = layer(torch.sigmoid(hidden_BSA))
        return hidden_BSA.squeeze(-1)


class DeepInterestNetwork(Ranker):
    """The sum of item features and time blocks weighed by local activation, and the common head.

    Args:
        width: d of the item features.
        num_time_blocks: blocks told apart.
        attention_widths: hidden layers of the local activation.
        head_widths: hidden layers behind [user; target].
        dropout: share of the head's hidden units dropped in training.
        normalized: weights are a softmax of the scores over sqrt(d), as in the paper's comparison;
            otherwise the scores themselves, as in [26].
    """

    reads = frozenset({Domain.STORY})

    def __init__(
        self,
        *,
        width: int,
        num_time_blocks: int,
        attention_widths: Sequence[int],
        head_widths: Sequence[int],
        dropout: float,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.normalized = normalized
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.activation = LocalActivation(width=width, widths=attention_widths)
        self.head = click_head(2 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        logits_B1: Tensor = self.head(torch.cat([self.user(features), features.target_BD], dim=-1))
        return logits_B1.squeeze(-1)

    def user(self, features: Features) -> Tensor:
        """The user representation, [B, D]; zero where the whole sequence is padding."""
        story_BSD, blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        story_BSD = story_BSD + self.time_blocks(blocks_BS)
        weights_BS: Tensor = self.activation(features.target_BD, story_BSD)
        if self.normalized:
            weights_BS = masked_softmax(weights_BS * story_BSD.shape[-1] ** -0.5, blocks_BS > 0, dim=1)
        # at padding the items are zero, whatever their weights
        return torch.matmul(weights_BS.unsqueeze(1), story_BSD).squeeze(1)
