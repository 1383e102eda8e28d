"""THACIL: attention over items and categories in blocks of clicks, then over the blocks.

Paper: Sec. IV-A, [25]. Legend: B batch, S story sequence, N blocks of a sequence, K clicks of a block,
Q queries, L whatever is attended to, D width, H heads, E head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import click_head, cut_sequence, longest_sequence, masked_softmax, time_block_table
from storyrec.schema import Domain


class AdditiveAttention(nn.Module):
    """Attention whose weights differ by dimension: softmax over L of `W tanh(W_k k + W_q q + b)`.

    Args:
        key_width: D, of what is attended to.
        query_width: of a query.
    """

    def __init__(self, *, key_width: int, query_width: int) -> None:
        super().__init__()
        self.key = nn.Linear(key_width, key_width)
        self.query = nn.Linear(query_width, key_width, bias=False)
        self.score = nn.Linear(key_width, key_width, bias=False)

    def forward(self, values: Tensor, queries: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum, [..., D]; zero where nothing is real.

        Args:
            values: [..., L, D].
            queries: one for each value, [..., L, query width], or one for all, [..., 1, query width].
            mask: True at real values, [..., L].
        """
        # as tanh, which is 2 sigmoid(2 x) - 1: the softmax is blind to the -1
        hidden = torch.sigmoid(2.0 * (self.key(values) + self.query(queries)))
        weights = masked_softmax(self.score(2.0 * hidden), mask.unsqueeze(-1), dim=-2)
        return (weights * values).sum(dim=-2)


class ForwardSelfAttention(nn.Module):
    """Additive multi-head attention of each block over the blocks before it.

    Args:
        width: of a block, a multiple of `num_heads`.
        num_heads: attention heads.
    """

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.scores_HEE = nn.Parameter(torch.empty(num_heads, width // num_heads, width // num_heads))
        nn.init.uniform_(self.scores_HEE, -((width // num_heads) ** -0.5), (width // num_heads) ** -0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, blocks_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """The blocks after attention, residual and normalisation, [B, N, D]; any finite value at padding."""
        num_rows, num_blocks, width = blocks_BND.shape

        def heads(values_BND: Tensor) -> Tensor:
            return values_BND.view(num_rows, num_blocks, self.num_heads, -1).permute(2, 0, 1, 3)

        query_HBQ1E, key_HB1LE = heads(self.query(blocks_BND)).unsqueeze(3), heads(self.key(blocks_BND)).unsqueeze(2)
        hidden_HBQLE = torch.sigmoid(2.0 * (query_HBQ1E + key_HB1LE))  # as tanh, see above
        scores_HBQLE = torch.bmm(2.0 * hidden_HBQLE.flatten(1, 3), self.scores_HEE).view(hidden_HBQLE.shape)
        earlier_QL = torch.ones(num_blocks, num_blocks, dtype=torch.bool, device=mask_BN.device).tril(-1)
        mask_BQL1 = (mask_BN.unsqueeze(1) & earlier_QL).unsqueeze(-1)
        weights_HBQLE = masked_softmax(scores_HBQLE, mask_BQL1, dim=3)
        mixed_HBQE = (weights_HBQLE * heads(self.value(blocks_BND)).unsqueeze(2)).sum(dim=3)
        return self.norm(blocks_BND + mixed_HBQE.permute(1, 2, 0, 3).reshape(num_rows, num_blocks, width))


class Thacil(Ranker):
    """Two attentions in each block of clicks, one across the blocks, one of the target, and the common head.

    A click is an item and the category of the product that it mounts; the head reads both of the target.

    Args:
        width: d of the item features.
        num_heads: heads of the attention across blocks; must divide 2 d.
        block_length: clicks of a block, in order of time; the last may have fewer.
        num_categories: rows 1 to `num_categories` of the table of categories; row 0, no category, stays zero.
        num_time_blocks: blocks of time told apart.
        head_widths: hidden layers behind [user; item; category].
        dropout: share of the head's hidden units dropped in training.
    """

    reads = frozenset({Domain.STORY})
    shares_sequences = True

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        block_length: int,
        num_categories: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.block_length = block_length
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.categories = nn.Embedding(num_categories + 1, width, padding_idx=0)
        with torch.no_grad():
            self.categories.weight.normal_(std=0.05)
            self.categories.weight[0] = 0.0
        self.item_attention = AdditiveAttention(key_width=width, query_width=width)
        self.category_attention = AdditiveAttention(key_width=width, query_width=width)
        self.self_attention = ForwardSelfAttention(width=2 * width, num_heads=num_heads)
        self.target_attention = AdditiveAttention(key_width=2 * width, query_width=2 * width)
        self.head = click_head(4 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        target_BD = torch.cat([features.target_BD, self.categories(features.target_categories_B)], dim=-1)
        blocks_BND = features.per_sequence(lambda sequences: self.self_attention(*self.blocks(sequences)))
        mask_BN = self._clicks(features.story_blocks_BS).any(dim=-1)
        user_BD = self.target_attention(blocks_BND, target_BD.unsqueeze(1), mask_BN)
        logits_B1: Tensor = self.head(torch.cat([user_BD, target_BD], dim=-1))
        return logits_B1.squeeze(-1)

    def blocks(self, features: Features) -> tuple[Tensor, Tensor]:
        """[items; categories] of each block, [B, N, 2 d], zero without clicks, and which have clicks, [B, N]."""
        story_BSD, blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        story_BSD = story_BSD + self.time_blocks(blocks_BS)
        num_clicks = blocks_BS.shape[1]
        categories_BS = features.story_categories_BS[:, :num_clicks].masked_fill(blocks_BS == 0, 0)

        mask_BNK = self._clicks(blocks_BS)
        num_missing = -num_clicks % self.block_length
        items_BNKD = F.pad(story_BSD, (0, 0, 0, num_missing)).view(*mask_BNK.shape, story_BSD.shape[-1])
        categories_BNKD = self.categories(F.pad(categories_BS, (0, num_missing)).view(mask_BNK.shape))
        pooled_BND = torch.cat(
            [
                self.item_attention(items_BNKD, categories_BNKD, mask_BNK),
                self.category_attention(categories_BNKD, items_BNKD, mask_BNK),
            ],
            dim=-1,
        )
        return pooled_BND, mask_BNK.any(dim=-1)

    def _clicks(self, time_blocks_BS: Tensor) -> Tensor:
        """Where the blocks have clicks, [B, N, K]."""
        num_clicks = longest_sequence(time_blocks_BS)
        clicks_BC = F.pad(time_blocks_BS[:, :num_clicks] > 0, (0, -num_clicks % self.block_length))
        return clicks_BC.view(len(clicks_BC), -1, self.block_length)
