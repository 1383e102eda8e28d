"""The small interface that every click-through method is behind: extractors, then a ranker.

A ranker is all that a method has behind the item features of Sec. III-A; the extractors are the same
for all of them. Legend: B batch, S story sequence, P product sequence, D width, N distinct items.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storyrec.data.batches import Batch
from storyrec.losses import click_loss
from storyrec.models.extractors import BOTH_MODALITIES, Extractors, Modality, RawItems
from storyrec.schema import Domain

Int64s = NDArray[np.int64]

BOTH_DOMAINS = frozenset(Domain)
SORTED_BEYOND = 64  # catalog rows a row of the batch: from there on, sorting costs less than a pass over the catalog


@dataclass(frozen=True)
class Features:
    """What a ranker may read of B impressions. Sequences are oldest first, padded on the right.

    Attributes:
        target_BD: item features of the targets; a target has no time block.
        story_BSD, product_BPD: item features of the sequences; any value at padding.
        story_blocks_BS, product_blocks_BP: time blocks, integers; 0 marks padding.
        user_rows_B: row in a table of users, integers; 0 = a user without training instances.
        target_categories_B, story_categories_BS: category of the mounted product as a row of a table
            of categories, integers; 0 = none.
        first_B: row of the first impression with the very same sequences, integers; None: nobody looked.
    """

    target_BD: Tensor
    story_BSD: Tensor
    story_blocks_BS: Tensor
    product_BPD: Tensor
    product_blocks_BP: Tensor
    user_rows_B: Tensor
    target_categories_B: Tensor
    story_categories_BS: Tensor
    first_B: Tensor | None = None

    def per_sequence(self, part: Callable[["Features"], Tensor]) -> Tensor:
        """What a part of a ranker makes of the sequences alone, [B, ...], computed once for those that are the same.

        In training such impressions share what is dropped, too.

        Args:
            part: reads sequences, time blocks and categories of the clicks.
        """
        if self.first_B is None:
            return part(self)
        rows_U, places_B = torch.unique(self.first_B, return_inverse=True)
        sequences = ("story_BSD", "story_blocks_BS", "product_BPD", "product_blocks_BP", "story_categories_BS")
        once = replace(self, **{name: getattr(self, name).index_select(0, rows_U) for name in sequences})
        return part(once).index_select(0, places_B)


class Ranker(nn.Module):
    """A method behind the item features. Subclasses define `forward`, and `loss` where it has more terms.

    Attributes:
        reads: the domains whose sequences it reads; features of the others are all zero.
        shares_sequences: whether it uses `Features.per_sequence`.
    """

    reads: frozenset[Domain] = BOTH_DOMAINS
    shares_sequences: bool = False

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        raise NotImplementedError

    def loss(self, features: Features, clicked_B: Tensor) -> Tensor:
        """What training minimises, a scalar: Eq. 11, unless the method has more to learn from.

        Args:
            features: of the batch.
            clicked_B: the labels, [B] float.
        """
        return click_loss(self(features), clicked_B)


class ClickModel(nn.Module):
    """Extractors and a ranker, trained together.

    Args:
        extractors: of both domains.
        ranker: the method.
        modalities: what item features are summed from (Sec. IV-E).
    """

    def __init__(
        self, extractors: Extractors, ranker: Ranker, *, modalities: Collection[Modality] = BOTH_MODALITIES
    ) -> None:
        super().__init__()
        self.extractors = extractors
        self.ranker = ranker
        self.modalities = frozenset(modalities)

    def forward(self, batch: Batch, *, stories: RawItems, products: RawItems) -> Tensor:
        """Logits [B] of a batch.

        Args:
            batch: catalog rows and time blocks.
            stories, products: what the extractors read of the two catalogs.
        """
        logits_B: Tensor = self.ranker(self.features(batch, stories=stories, products=products))
        return logits_B

    def loss(self, batch: Batch, *, stories: RawItems, products: RawItems) -> Tensor:
        """What training minimises on a batch, a scalar."""
        features = self.features(batch, stories=stories, products=products)
        return self.ranker.loss(features, torch.from_numpy(batch.clicked_B).to(features.target_BD.device))

    def features(self, batch: Batch, *, stories: RawItems, products: RawItems) -> Features:
        """What the ranker reads of a batch; each distinct item is extracted once and then gathered."""
        num_targets = len(batch.story_rows_B)
        rows = [batch.story_rows_B]
        if Domain.STORY in self.ranker.reads:
            rows.append(batch.story_slots_BS.ravel())
        story_rows_N, places = distinct(np.concatenate(rows), num_rows=len(stories))
        story_ND = self.item_vectors(stories, story_rows_N)
        story_BSD = product_BPD = None
        if Domain.STORY in self.ranker.reads:
            story_BSD = gather(story_ND, places[num_targets:].reshape(batch.story_slots_BS.shape))
        if Domain.PRODUCT in self.ranker.reads:
            product_rows_N, product_places = distinct(batch.product_slots_BP.ravel(), num_rows=len(products))
            product_ND = self.item_vectors(products, product_rows_N)
            product_BPD = gather(product_ND, product_places.reshape(batch.product_slots_BP.shape))
        return self._assemble(batch, gather(story_ND, places[:num_targets]), story_BSD, product_BPD, stories=stories)

    def features_from_tables(
        self, batch: Batch, *, story_ND: Tensor, product_ND: Tensor, stories: RawItems
    ) -> Features:
        """The same from vectors that were extracted before, a row per catalog row, [N, D]."""
        reads = self.ranker.reads
        return self._assemble(
            batch,
            gather(story_ND, batch.story_rows_B),
            gather(story_ND, batch.story_slots_BS) if Domain.STORY in reads else None,
            gather(product_ND, batch.product_slots_BP) if Domain.PRODUCT in reads else None,
            stories=stories,
        )

    def item_vectors(self, items: RawItems, rows_N: Int64s) -> Tensor:
        """The item features of these catalog rows, [N, D]: the sum of the modalities. Paper: Sec. III-C."""
        return self.extractors.extract(items, rows_N, modalities=self.modalities).item_ND

    def _assemble(
        self,
        batch: Batch,
        target_BD: Tensor,
        story_BSD: Tensor | None,
        product_BPD: Tensor | None,
        *,
        stories: RawItems,
    ) -> Features:
        def put(values: Int64s) -> Tensor:
            return torch.from_numpy(values).to(target_BD.device)

        def or_zero(items_BLD: Tensor | None, slots_BL: Int64s) -> Tensor:
            return target_BD.new_zeros(*slots_BL.shape, target_BD.shape[-1]) if items_BLD is None else items_BLD

        return Features(
            target_BD=target_BD,
            story_BSD=or_zero(story_BSD, batch.story_slots_BS),
            story_blocks_BS=put(batch.story_blocks_BS),
            product_BPD=or_zero(product_BPD, batch.product_slots_BP),
            product_blocks_BP=put(batch.product_blocks_BP),
            user_rows_B=put(batch.user_rows_B),
            target_categories_B=put(stories.categories_N[batch.story_rows_B]),
            story_categories_BS=put(stories.categories_N[batch.story_slots_BS]),
            first_B=put(first_with_same_sequences(batch, self.ranker.reads)) if self.ranker.shares_sequences else None,
        )


def gather(items_ND: Tensor, places: Int64s) -> Tensor:
    """Rows of a table in the shape of `places`, [..., D]."""
    # index_select, because the gradients of indexing and of F.embedding are several times slower on a CPU
    index = torch.from_numpy(places.ravel()).to(items_ND.device)
    return items_ND.index_select(0, index).view(*places.shape, items_ND.shape[1])


def first_with_same_sequences(batch: Batch, reads: Collection[Domain]) -> Int64s:
    """For each impression the first of the batch with the same clicks in the same time blocks, [B].

    Args:
        batch: of impressions.
        reads: the domains that count.
    """
    parts: list[Int64s] = []
    if Domain.STORY in reads:
        parts += [batch.story_slots_BS, batch.story_blocks_BS]
    if Domain.PRODUCT in reads:
        parts += [batch.product_slots_BP, batch.product_blocks_BP]
    clicks_BX = np.concatenate(parts, axis=1)
    _, first_U, places_B = np.unique(clicks_BX, axis=0, return_index=True, return_inverse=True)
    return first_U[places_B.ravel()]


def distinct(rows: Int64s, *, num_rows: int) -> tuple[Int64s, Int64s]:
    """The distinct catalog rows, sorted, and the place of each row among them.

    Like `numpy.unique` with the inverse; without its sort where the catalog is not far larger.
    """
    if num_rows > SORTED_BEYOND * len(rows):
        sorted_rows, places = np.unique(rows, return_inverse=True)
        return sorted_rows, places
    present = np.zeros(num_rows, dtype=np.bool_)
    present[rows] = True
    distinct_rows = np.flatnonzero(present)
    place = np.empty(num_rows, dtype=np.int64)
    place[distinct_rows] = np.arange(len(distinct_rows))
    return distinct_rows, place[rows]
