"""ADEN: the click probability of a target story, given a user's clicks in both domains.

Paper: Sec. III-C. Legend: B batch, L sequence (S story, P product), D width, H heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from storyrec.models.attention import TargetAttention
from storyrec.models.click_model import BOTH_DOMAINS, Features, Ranker
from storyrec.models.layers import click_head, time_block_table
from storyrec.schema import Domain


class Aden(Ranker):
    """Two attentions, one per domain, and a head behind them.

    Args:
        width: d of the item features.
        num_heads: attention heads per domain; must divide `width`.
        num_time_blocks: blocks told apart; the table has two more rows, 0 = padding (stays zero) and
            `num_time_blocks + 1` = older.
        head_widths: hidden layers behind [story user; product user; target].
        dropout: share of attention weights and hidden units dropped in training.
        reads: the domains that count; with one, the head has that domain's user and the target (Sec. IV-E).
        gated: weigh the two users against each other per impression, the remedy that the paper suggests
            for its failure case 1 (Sec. IV-H).
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
        reads: frozenset[Domain] = BOTH_DOMAINS,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.reads = reads
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        attentions = {
            domain: TargetAttention(width=width, num_heads=num_heads, dropout=dropout)
            for domain in Domain
            if domain in reads
        }
        self.story_attention = attentions.get(Domain.STORY)
        self.product_attention = attentions.get(Domain.PRODUCT)
        self.gate = nn.Linear((len(reads) + 1) * width, len(reads)) if gated else None
        self.head = click_head((len(reads) + 1) * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        return self._logits(self.users(features), features.target_BD)

    def of_one_user(
        self,
        target_BD: Tensor,
        *,
        story_LD: Tensor,
        story_blocks_L: Tensor,
        product_LD: Tensor,
        product_blocks_L: Tensor,
    ) -> tuple[Tensor, dict[Domain, Tensor]]:
        """Logits of many targets for one user, [B], and the attention weights, [B, H, L], of the domains that count.

        As `forward` and `attention_weights` with the sequences repeated for every target, in a fraction of the work.
        """
        sequences = (
            (Domain.STORY, self.story_attention, story_LD, story_blocks_L),
            (Domain.PRODUCT, self.product_attention, product_LD, product_blocks_L),
        )
        seen = {
            domain: attention.of_one_user(target_BD, items_LD + self.time_blocks(blocks_L), blocks_L > 0)
            for domain, attention, items_LD, blocks_L in sequences
            if attention is not None
        }
        logits_B = self._logits([user_BD for user_BD, _ in seen.values()], target_BD)
        return logits_B, {domain: weights_BHL for domain, (_, weights_BHL) in seen.items()}

    def _logits(self, users: Sequence[Tensor], target_BD: Tensor) -> Tensor:
        parts = [*users, target_BD]
        if self.gate is not None:
            # twice a softmax: an undecided gate changes nothing
            weights_BU = 2.0 * torch.softmax(self.gate(torch.cat(parts, dim=-1)), dim=-1)
            parts = [*(user_BD * weights_BU[:, [i]] for i, user_BD in enumerate(parts[:-1])), target_BD]
        logits_B1: Tensor = self.head(torch.cat(parts, dim=-1))
        return logits_B1.squeeze(-1)

    def users(self, features: Features) -> list[Tensor]:
        """The user as each domain that counts sees her, [B, D] each, the story domain first. Paper: Eq. 9."""
        return [attention(*inputs) for attention, inputs in self._attentions(features).values()]

    def attention_weights(self, features: Features) -> dict[Domain, Tensor]:
        """How much each head attends to each click, [B, H, L], of the domains that count. Paper: Eq. 10, Fig. 6."""
        return {
            domain: attention.weights(*inputs) for domain, (attention, inputs) in self._attentions(features).items()
        }

    def _attentions(self, features: Features) -> dict[Domain, tuple[TargetAttention, tuple[Tensor, Tensor, Tensor]]]:
        """Each domain's attention with the target, the timed items and the mask that it reads."""
        domains = (
            (Domain.STORY, self.story_attention, features.story_BSD, features.story_blocks_BS),
            (Domain.PRODUCT, self.product_attention, features.product_BPD, features.product_blocks_BP),
        )
        return {
            domain: (attention, (features.target_BD, items_BLD + self.time_blocks(blocks_BL), blocks_BL > 0))
            for domain, attention, items_BLD, blocks_BL in domains
            if attention is not None
        }
