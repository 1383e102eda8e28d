"""Parts that several rankers share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyrec.models.dropout import Dropout


class TimeBlockTable(nn.Embedding):
    """An embedding whose row 0 is the padding, with a gradient that is several times faster on a CPU."""

    def forward(self, blocks_BL: Tensor) -> Tensor:
        """Vectors of these blocks, [B, L, D]; zero at padding."""
        table_TD = F.pad(self.weight[1:], (0, 0, 1, 0))  # nothing flows back to the row of the padding
        return table_TD.index_select(0, blocks_BL.flatten()).view(*blocks_BL.shape, self.embedding_dim)


def time_block_table(num_time_blocks: int, *, width: int) -> TimeBlockTable:
    """A vector per time block; row 0 = padding (stays zero), the last row = older. Paper: Sec. III-C, T."""
    table = TimeBlockTable(num_time_blocks + 2, width, padding_idx=0)
    with torch.no_grad():
        table.weight.normal_(std=0.02)
        table.weight[0] = 0.0
    return table


def click_head(width: int, *, head_widths: Sequence[int], dropout: float) -> nn.Sequential:
    """The layers from a concatenation of representations [B, width] to a logit [B, 1]. Paper: Sec. IV-B."""
    layers: list[nn.Module] = []
    for hidden in head_widths:
        layers += [nn.Linear(width, hidden), nn.ReLU(), Dropout(dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1))


class UserTable(nn.Module):
    """A vector per user; row 0 is the unknown user, who has no training instances.

    In training a few impressions, drawn at random, are taken for the unknown user's, so that her vector
    becomes that of a user of whom nothing is known.

    Args:
        num_users: known users, rows 1 to `num_users`.
        width: of a vector.
        unknown_share: of the impressions taken for the unknown user's.
    """

    def __init__(self, num_users: int, *, width: int, unknown_share: float = 0.1) -> None:
        super().__init__()
        self.vectors = nn.Embedding(num_users + 1, width)
        self.unknown_share = unknown_share
        with torch.no_grad():
            self.vectors.weight.normal_(std=0.05)

    def forward(self, rows_B: Tensor) -> Tensor:
        """Vectors of these rows, [B, width]."""
        if self.training:
            unknown_B = torch.rand(rows_B.shape, device=rows_B.device) < self.unknown_share
            rows_B = rows_B.masked_fill(unknown_B, 0)
        vectors_BD: Tensor = self.vectors(rows_B)
        return vectors_BD


def cut_sequence(items_BLD: Tensor, blocks_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The same sequences without the columns that are padding in every row, zero at what padding is left.

    Args:
        items_BLD: item features, any finite or infinite value at padding.
        blocks_BL: time blocks, integers; 0 marks padding, which is on the right.

    Returns:
        Items and blocks, at least one column of them.
    """
    num_columns = longest_sequence(blocks_BL)
    items_BLD, blocks_BL = items_BLD[:, :num_columns], blocks_BL[:, :num_columns]
    return items_BLD.masked_fill((blocks_BL == 0).unsqueeze(-1), 0.0), blocks_BL


def longest_sequence(blocks_BL: Tensor) -> int:
    """Clicks of the longest of these sequences, at least 1; blocks as for `cut_sequence`."""
    return max(1, int((blocks_BL > 0).any(dim=0).sum()))


def masked_mean(values_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean over the real positions, [B, D]; zero where there is none."""
    weights_BL = mask_BL / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.matmul(weights_BL.to(values_BLD.dtype).unsqueeze(1), values_BLD).squeeze(1)


def masked_softmax(scores: Tensor, mask: Tensor, *, dim: int) -> Tensor:
    """Softmax over the real positions of a dimension, zero at the others; all zero where none is real.

    Args:
        scores: any finite values at padding.
        mask: True at real positions, of a shape that broadcasts to that of the scores.
        dim: the dimension that is summed to 1.
    """
    # a finite floor: without a real position the weights are equal here, not NaN, and zero below
    return torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=dim) * mask


class TransformerBlock(nn.Module):
    """Multi-head self-attention and two layers per position, each with a residual and normalised after it.

    Args:
        width: of an item, a multiple of `num_heads`.
        num_heads: attention heads.
        hidden_width: of the layers per position.
        dropout: share of what each residual adds that is dropped in training.
    """

    def __init__(self, *, width: int, num_heads: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.positions = nn.Sequential(nn.Linear(width, hidden_width), nn.LeakyReLU(), nn.Linear(hidden_width, width))
        self.positions_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, sequence_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The sequence after the block, [B, L, D]; any finite value at padding."""
        heads_BLHE = (*sequence_BLD.shape[:2], self.num_heads, -1)
        query_BHLE, key_BHLE, value_BHLE = (
            part_BLD.reshape(heads_BLHE).transpose(1, 2) for part_BLD in self.projections(sequence_BLD).chunk(3, dim=-1)
        )
        # a row without a real position attends to its padding: no NaN
        attended_BL = mask_BL | ~mask_BL.any(dim=1, keepdim=True)
        mixed_BHLE = F.scaled_dot_product_attention(
            query_BHLE, key_BHLE, value_BHLE, attn_mask=attended_BL[:, None, None]
        )
        mixed_BLD = self.output(mixed_BHLE.transpose(1, 2).flatten(2))
        sequence_BLD = self.attention_norm(sequence_BLD + self.dropout(mixed_BLD))
        return self.positions_norm(sequence_BLD + self.dropout(self.positions(sequence_BLD)))


def nth_vectors(values_BLD: Tensor, numbers_BN: Tensor) -> Tensor:
    """Some vectors of each row by their number, counted from 1, [B, N, D]; zero for the number 0."""
    values_BLD = F.pad(values_BLD, (0, 0, 1, 0))
    return values_BLD.gather(1, numbers_BN.unsqueeze(-1).expand(-1, -1, values_BLD.shape[-1]))
