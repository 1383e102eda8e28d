"""ADEN: the click probability of a target story, given a user's clicks in both domains.

Paper: Sec. III-C, Eq. 9-10. Legend: B batch, L sequence (S story, P product), D width, H heads,
E head width, N distinct items.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from storyrec.data.batches import Batch
from storyrec.models.dropout import Dropout
from storyrec.models.extractors import Extractors, RawItems


class TargetAttention(nn.Module):
    """Multi-head attention of the target story over one sequence.

    Paper: Eq. 9-10; without output projection, residual or normalisation. Key and value projections
    are folded to the query's side, which is the same arithmetic without projecting every item of
    the sequence: `q . (K f + k) = (q K) . f + q . k` and `sum a (V f + v) = V (sum a f) + v sum a`.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, target_BD: Tensor, sequence_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The user representation [B, D]; zero where the whole sequence is padding."""
        num_heads, head_width = self.num_heads, self.head_width
        query_HBE = self.query(target_BD).view(-1, num_heads, head_width).transpose(0, 1)
        key_HED = self.key.weight.view(num_heads, head_width, -1)
        key_bias_HE1 = self.key.bias.view(num_heads, head_width, 1)
        value_HDE = self.value.weight.view(num_heads, head_width, -1).transpose(1, 2)
        value_bias_HE = self.value.bias.view(num_heads, head_width)

        folded_BHD = torch.bmm(query_HBE, key_HED).transpose(0, 1)
        offset_BH1 = torch.bmm(query_HBE, key_bias_HE1).transpose(0, 1)
        scores_BHL = (torch.matmul(folded_BHD, sequence_BLD.transpose(1, 2)) + offset_BH1) * head_width**-0.5
        mask_B1L = mask_BL.unsqueeze(1)
        # a finite floor: an empty sequence gets equal weights here, not NaN, and zeros below
        scores_BHL = scores_BHL.masked_fill(~mask_B1L, torch.finfo(scores_BHL.dtype).min)
        weights_BHL = torch.softmax(scores_BHL, dim=-1) * mask_B1L
        weights_BHL = self.dropout(weights_BHL)

        pooled_HBD = torch.matmul(weights_BHL, sequence_BLD).transpose(0, 1)
        user_BHE = torch.bmm(pooled_HBD, value_HDE).transpose(0, 1)
        user_BHE = user_BHE + weights_BHL.sum(dim=-1, keepdim=True) * value_bias_HE
        return user_BHE.flatten(1)


class Ranker(nn.Module):
    """Everything behind the item features; what is served.

    Args:
        width: d of the item features.
        num_heads: attention heads per domain; must divide `width`.
        num_time_blocks: blocks told apart; the table has two more rows, 0 = padding (stays zero) and
            `num_time_blocks + 1` = older.
        head_widths: hidden layers behind [story user; product user; target].
        dropout: share of attention weights and hidden units dropped in training.
    """

    def __init__(
        self, *, width: int, num_heads: int, num_time_blocks: int, head_widths: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.time_blocks = nn.Embedding(num_time_blocks + 2, width, padding_idx=0)
        with torch.no_grad():
            self.time_blocks.weight.normal_(std=0.02)
            self.time_blocks.weight[0] = 0.0
        self.story_attention = TargetAttention(width=width, num_heads=num_heads, dropout=dropout)
        self.product_attention = TargetAttention(width=width, num_heads=num_heads, dropout=dropout)
        layers: list[nn.Module] = []
        last = 3 * width
        for hidden in head_widths:
            layers += [nn.Linear(last, hidden), nn.ReLU(), Dropout(dropout)]
            last = hidden
        self.head = nn.Sequential(*layers, nn.Linear(last, 1))

    def forward(
        self,
        target_BD: Tensor,
        story_BSD: Tensor,
        story_blocks_BS: Tensor,
        product_BPD: Tensor,
        product_blocks_BP: Tensor,
    ) -> Tensor:
        """Score each target story for its user.

        Args:
            target_BD: item features of the targets; a target has no time block.
            story_BSD, product_BPD: item features of the sequences; any value at padding.
            story_blocks_BS, product_blocks_BP: time blocks, integers; 0 marks padding.

        Returns:
            Logits of the click probabilities, [B].
        """
        story_BD = self.story_attention(target_BD, story_BSD + self.time_blocks(story_blocks_BS), story_blocks_BS > 0)
        product_BD = self.product_attention(
            target_BD, product_BPD + self.time_blocks(product_blocks_BP), product_blocks_BP > 0
        )
        logits_B1: Tensor = self.head(torch.cat([story_BD, product_BD, target_BD], dim=-1))
        return logits_B1.squeeze(-1)


class Aden(nn.Module):
    """Extractors and ranker, trained together."""

    def __init__(self, extractors: Extractors, ranker: Ranker) -> None:
        super().__init__()
        self.extractors = extractors
        self.ranker = ranker

    def forward(self, batch: Batch, *, stories: RawItems, products: RawItems) -> Tensor:
        """Logits [B] of a batch; each distinct item is extracted once and then gathered.

        Args:
            batch: catalog rows and time blocks.
            stories, products: what the extractors read of the two catalogs.
        """
        device = self.ranker.time_blocks.weight.device
        num_targets = len(batch.story_rows_B)
        rows = np.concatenate([batch.story_rows_B, batch.story_slots_BS.ravel()])
        story_rows_N, places = distinct(rows, num_rows=len(stories))
        product_rows_N, product_places = distinct(batch.product_slots_BP.ravel(), num_rows=len(products))
        story_ND = self.extractors.extract(stories, story_rows_N).item_ND
        product_ND = self.extractors.extract(products, product_rows_N).item_ND

        def place(places: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(places.reshape(shape)).to(device)

        # F.embedding, because the gradient of indexing is slow on a CPU
        logits_B: Tensor = self.ranker(
            F.embedding(place(places[:num_targets], (num_targets,)), story_ND),
            F.embedding(place(places[num_targets:], batch.story_slots_BS.shape), story_ND),
            torch.from_numpy(batch.story_blocks_BS).to(device),
            F.embedding(place(product_places, batch.product_slots_BP.shape), product_ND),
            torch.from_numpy(batch.product_blocks_BP).to(device),
        )
        return logits_B


def distinct(rows: NDArray[np.int64], *, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct catalog rows, sorted, and the place of each row among them.

    Like `numpy.unique` with the inverse, without its sort.
    """
    present = np.zeros(num_rows, dtype=np.bool_)
    present[rows] = True
    distinct_rows = np.flatnonzero(present)
    place = np.empty(num_rows, dtype=np.int64)
    place[distinct_rows] = np.arange(len(distinct_rows))
    return distinct_rows, place[rows]
