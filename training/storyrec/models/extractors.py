"""From an item's title and cover to its features.

Paper: Sec. III-A, Eq. 2-4. Legend: N items, W words of a title, V raw visual, D width.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from storyrec.models.dropout import Dropout
from storyrec.schema import COVER_WIDTH, Domain

PADDING_WORD = 0
INITIAL_WORD_DEVIATION = 0.05
CPU = torch.device("cpu")
COPIED_ROWS = 1 << 16  # of an array that may be larger than memory, at a time


class Modality(StrEnum):
    """What an item feature is made of."""

    VISUAL = "visual"
    TEXTUAL = "textual"


BOTH_MODALITIES = frozenset(Modality)


@dataclass(frozen=True)
class ItemFeatures:
    """Features of N items in both modalities.

    Attributes:
        visual_ND: from the cover; zero where there is none.
        textual_ND: from the title; zero where it is empty.
    """

    visual_ND: Tensor
    textual_ND: Tensor

    @property
    def item_ND(self) -> Tensor:
        """What the ranker reads: the sum of both modalities. Paper: Sec. III-C."""
        return self.visual_ND + self.textual_ND

    @property
    def match_NM(self) -> Tensor:
        """What stories are matched to products by: title and cover side by side, [N, 2 D]."""
        return torch.cat([self.textual_ND, self.visual_ND], dim=-1)


@dataclass(frozen=True)
class RawItems:
    """What an extractor reads of one domain's catalog, row by row; row 0 is the padding.

    Attributes:
        tokens_NW: words of the titles, int32, 0 = padding.
        visual_raw_NV: raw covers, float16 (may be memory-mapped), zero where there is none.
        has_cover_N: whether an item has a cover.
        domain: where the items live.
        categories_N: row of each item in a table of categories, int64; 0 = none.
        placed_tokens_NW, placed_visual_raw_NV: copies of titles and covers on a device; None: there is none.
    """

    tokens_NW: NDArray[np.int32]
    visual_raw_NV: NDArray[np.float16]
    has_cover_N: NDArray[np.bool_]
    domain: Domain
    categories_N: NDArray[np.int64]
    placed_tokens_NW: Tensor | None = None
    placed_visual_raw_NV: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens_NW: NDArray[np.int32],
        visual_raw_NV: NDArray[np.float16],
        *,
        domain: Domain,
        categories_N: NDArray[np.int64] | None = None,
    ) -> "RawItems":
        """The items of these titles and covers; a cover without a non-zero value is none."""
        # as integers, because numpy has no fast test for half floats
        has_cover_N = np.any(np.ascontiguousarray(visual_raw_NV).view(np.uint16), axis=1)
        if categories_N is None:
            categories_N = np.zeros(len(tokens_NW), np.int64)
        return cls(tokens_NW, visual_raw_NV, has_cover_N, domain, categories_N)

    def __len__(self) -> int:
        return len(self.tokens_NW)

    def placed(self, device: torch.device, *, num_bytes: int) -> "RawItems":
        """The same items with copies of the titles, then of the covers, on a device, as far as they fit.

        Args:
            device: where the extractors will read them.
            num_bytes: the most that the copies may take.
        """
        tokens_NW = visual_raw_NV = None
        if self.tokens_NW.nbytes <= num_bytes:
            tokens_NW = _copied(self.tokens_NW, device)
            num_bytes -= self.tokens_NW.nbytes
        if self.visual_raw_NV.nbytes <= num_bytes:
            visual_raw_NV = _copied(self.visual_raw_NV, device)
        return replace(self, placed_tokens_NW=tokens_NW, placed_visual_raw_NV=visual_raw_NV)

    def tokens(self, rows_N: NDArray[np.int64], *, device: torch.device = CPU) -> Tensor:
        """Words of these rows, [N, W] int32 with W >= 1, on a device; cut after the longest where it costs nothing."""
        if self.placed_tokens_NW is not None:
            # not cut: to know the longest title, the CPU would have to wait for the device
            return self.placed_tokens_NW.index_select(0, torch.from_numpy(rows_N).to(device))
        tokens_NW = self.tokens_NW[rows_N]
        num_words = int((tokens_NW != PADDING_WORD).sum(axis=1).max(initial=1))
        return _sent(np.ascontiguousarray(tokens_NW[:, :num_words]), device)

    def visual_raw(self, rows_N: NDArray[np.int64], *, device: torch.device = CPU) -> Tensor | None:
        """Covers of these rows, [N, V] float32, on a device; None if not one of them has a cover."""
        if not self.has_cover_N[rows_N].any():
            return None
        if self.placed_visual_raw_NV is not None:
            return self.placed_visual_raw_NV.index_select(0, torch.from_numpy(rows_N).to(device)).float()
        return _sent(self.visual_raw_NV[rows_N], device).float()


class Extractors(nn.Module):
    """The feature extractors of both domains.

    The word table and the visual projection are shared by the domains. A story's title is pooled by
    vector-wise attention (Eq. 2-4), a product's title, a row of keywords, by its mean.

    Args:
        num_words: rows of the word table; row 0 is the padding, row 1 the default for unseen words.
        width: d.
        max_words: longest title, in words.
        visual_width: width of a raw cover.
        word_positions: add a learned row per position of a word (not in the paper's text).
        dropout: share of attention weights dropped in training.
        initial_scale: how long features are at first; at 1 covers keep their length.
    """

    def __init__(
        self,
        *,
        num_words: int,
        width: int,
        max_words: int,
        visual_width: int = COVER_WIDTH,
        word_positions: bool = True,
        dropout: float = 0.1,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.words = nn.Embedding(num_words, width, padding_idx=PADDING_WORD)
        self.positions = nn.Embedding(max_words, width) if word_positions else None
        # no bias, so that a missing cover, a zero vector, stays zero
        self.visual_projection = nn.Linear(visual_width, width, bias=False)
        self.attention_hidden = nn.Linear(width, width)
        self.attention_score = nn.Linear(width, width, bias=False)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            self.words.weight.normal_(std=initial_scale * INITIAL_WORD_DEVIATION)
            self.words.weight[PADDING_WORD] = 0.0
            self.visual_projection.weight.normal_(std=initial_scale * width**-0.5)
            if self.positions is not None:
                self.positions.weight.normal_(std=initial_scale * INITIAL_WORD_DEVIATION / 10)

    def forward(self, tokens_NW: Tensor | None, visual_raw_NV: Tensor | None, *, domain: Domain) -> ItemFeatures:
        """Extract the features of N items of one domain.

        Args:
            tokens_NW: words, [N, W <= max_words] integers, right-padded with 0; None: titles do not count.
            visual_raw_NV: raw covers, [N, V] float, zero where an item has none; None: no item has one, or
                covers do not count. Never None together with the titles.
            domain: decides how the title is pooled.
        """
        pool = self._story_title if domain == Domain.STORY else self._product_title
        textual_ND = None if tokens_NW is None else pool(tokens_NW)
        visual_ND = None if visual_raw_NV is None else self.visual_projection(visual_raw_NV)
        if visual_ND is None:
            assert textual_ND is not None
            visual_ND = torch.zeros_like(textual_ND)
        return ItemFeatures(visual_ND, torch.zeros_like(visual_ND) if textual_ND is None else textual_ND)

    def extract(
        self, items: RawItems, rows_N: NDArray[np.int64], *, modalities: Collection[Modality] = BOTH_MODALITIES
    ) -> ItemFeatures:
        """Features of these catalog rows, on the device of the weights; zero in other modalities."""
        device = self.words.weight.device
        tokens_NW = items.tokens(rows_N, device=device) if Modality.TEXTUAL in modalities else None
        visual_raw_NV = items.visual_raw(rows_N, device=device) if Modality.VISUAL in modalities else None
        if visual_raw_NV is None and tokens_NW is None:  # not one of them has a cover
            return ItemFeatures(*(torch.zeros(len(rows_N), self.width, device=device) for _ in range(2)))
        return self(tokens_NW, visual_raw_NV, domain=items.domain)

    def _story_title(self, tokens_NW: Tensor) -> Tensor:
        """Pool by attention with one weight per word and dimension. Paper: Eq. 2-4.

        Titles of equal length are pooled together: no work on padding, and none of it in the result.
        """
        lengths_N = _lengths(tokens_NW)
        order_N = torch.argsort(lengths_N, stable=True)
        sorted_NW = tokens_NW[order_N]
        # K words of all titles, in one look-up whose gradient is fast on a CPU
        real_NW = sorted_NW != PADDING_WORD
        words_KD = self.words.weight.index_select(0, sorted_NW[real_NW])
        if self.positions is not None:
            numbers_NW = torch.arange(tokens_NW.shape[1], device=tokens_NW.device).expand_as(tokens_NW)
            words_KD = words_KD + self.positions.weight.index_select(0, numbers_NW[real_NW])
        # tanh(x) = 2 sigmoid(2 x) - 1, many times faster on a CPU; the -1 moves all words' scores alike
        # and so cancels in the softmax
        weight, bias = self.attention_hidden.weight, self.attention_hidden.bias
        hidden_KD = torch.sigmoid(F.linear(words_KD, 2.0 * weight, 2.0 * bias))
        scores_KD = F.linear(hidden_KD, 2.0 * self.attention_score.weight)
        numbers = torch.bincount(lengths_N).tolist()
        sizes = [length * number for length, number in enumerate(numbers)]
        groups = zip(numbers, torch.split(words_KD, sizes), torch.split(scores_KD, sizes), strict=True)
        parts = []
        for length, (number, words, scores) in enumerate(groups):
            shape_NWD = (number, length, self.width)
            weights_NWD = self.dropout(torch.softmax(scores.view(shape_NWD), dim=1))
            parts.append((weights_NWD * words.view(shape_NWD)).sum(dim=1))
        return torch.cat(parts).index_select(0, torch.argsort(order_N))

    def _product_title(self, tokens_NW: Tensor) -> Tensor:
        """Pool by the mean over the words. Paper: Sec. III-A."""
        textual_ND = F.embedding_bag(tokens_NW, self.words.weight, mode="mean", padding_idx=PADDING_WORD)
        if self.positions is None:
            return textual_ND
        # the mean of the first n positions, for every n
        positions_WD = self.positions.weight[: tokens_NW.shape[1]]
        numbers_W1 = torch.arange(1, len(positions_WD) + 1, device=positions_WD.device).unsqueeze(-1)
        means_WD = F.pad(positions_WD.cumsum(dim=0) / numbers_W1, (0, 0, 1, 0))
        return textual_ND + means_WD.index_select(0, _lengths(tokens_NW))


def _lengths(tokens_NW: Tensor) -> Tensor:
    return (tokens_NW != PADDING_WORD).sum(dim=1)


def _copied(array_NX: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy on a device, piece by piece: the array may be mapped from disk and larger than memory."""
    like = torch.from_numpy(array_NX[:0].copy())
    copy_NX = torch.empty(array_NX.shape, dtype=like.dtype, device=device)
    for start in range(0, len(array_NX), COPIED_ROWS):
        piece = array_NX[start : start + COPIED_ROWS]
        copy_NX[start : start + len(piece)] = torch.from_numpy(np.array(piece))
    return copy_NX


def _sent(array_NX: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on a device; to a GPU through pinned memory, so that nobody waits for the copy."""
    tensor_NX = torch.from_numpy(array_NX)
    return tensor_NX.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor_NX.to(device)
