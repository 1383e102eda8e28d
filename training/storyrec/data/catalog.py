"""The items of one domain as parallel arrays; row 0 is padding.

Suffixes: N = items with the padding row, V = raw cover, 512, M = pairs,
I = ids, R = log rows, K = covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.arrays import Texts
from storyrec.errors import DataError
from storyrec.features.sequences import to_int64
from storyrec.schema import COVER_WIDTH, SOURCES

Int64s = npt.NDArray[np.int64]

MOST_GAPS = 8
"""How many times as large as the catalog the largest id of a table of ids may be."""


@dataclass(frozen=True)
class Catalog:
    """All items of one domain, sorted by id; row 0 is the padding item (id 0, no title, no cover).

    Attributes:
        item_ids_N: [N] int64, sorted, item_ids_N[0] = 0.
        titles: N raw titles.
        visual_raw_NV: [N, 512] float16, zeros where there is no cover.
        published_us_N: [N] int64, epoch microseconds UTC, 0 for padding.
        sources_N: [N] int8, index into `schema.SOURCES`; -1 for products and padding.
        category_ids_N: [N] int64; a story has the category of the mounted product with the smallest id (Sec. II-C);
            0 = none.
    """

    item_ids_N: Int64s
    titles: Sequence[str]
    visual_raw_NV: npt.NDArray[np.float16]
    published_us_N: Int64s
    sources_N: npt.NDArray[np.int8]
    category_ids_N: Int64s

    def __len__(self) -> int:
        return len(self.item_ids_N)

    def rows(self, item_ids: npt.ArrayLike) -> Int64s:
        """The row of each id, in the shape of `item_ids`; 0 for an unknown one."""
        ids = np.asarray(item_ids, np.int64)
        if ids.size > len(self) > self.item_ids_N[-1] // MOST_GAPS:  # looking ids up in a table is ten times as fast
            rows_I = np.zeros(self.item_ids_N[-1] + 2, np.int64)
            rows_I[self.item_ids_N] = np.arange(len(self))
            return rows_I[np.clip(ids, 0, len(rows_I) - 1)]
        rows = np.minimum(np.searchsorted(self.item_ids_N, ids), len(self.item_ids_N) - 1)
        return np.where(self.item_ids_N[rows] == ids, rows, 0)

    @classmethod
    def from_table(cls, table: pa.Table, *, newest_N: Int64s, visual_raw_NV: npt.NDArray[np.float16]) -> "Catalog":
        """A catalog out of its log table.

        Args:
            table: `stories` or `products` of the log contract; covers are not looked at.
            newest_N: which rows of it, from `newest_rows`; the padding row is put before them.
            visual_raw_NV: their covers, with that of the padding row.
        """
        small = table.take(pa.array(newest_N))
        sources = np.full(len(newest_N), -1, np.int8)
        if "source" in small.column_names:
            places = pc.index_in(small["source"], value_set=pa.array(SOURCES))
            sources = np.asarray(pc.fill_null(places, -1).to_numpy(), np.int8)
        has_category = "category_id" in small.column_names
        categories = to_int64(small["category_id"]) if has_category else np.zeros(len(newest_N), np.int64)
        titles = [pa.array([""]), *pc.fill_null(small["title"], "").chunks]
        return cls(
            item_ids_N=np.concatenate([[0], to_int64(small[id_column(small)])]),
            titles=Texts(pa.concat_arrays(titles)),
            visual_raw_NV=visual_raw_NV,
            published_us_N=np.concatenate([[0], to_int64(small["published_at"])]),
            sources_N=np.concatenate([np.array([-1], np.int8), sources]),
            category_ids_N=np.concatenate([[0], categories]),
        )

    def with_mounted_categories(self, pairs_M2: Int64s, *, products: "Catalog") -> "Catalog":
        """These stories with the category of the mounted product with the smallest id.

        Args:
            pairs_M2: (story row, product row), sorted, [M, 2] int64.
            products: whose rows are meant.
        """
        stories, first = np.unique(pairs_M2[:, 0], return_index=True)
        category_ids_N = np.zeros(len(self), np.int64)
        category_ids_N[stories] = products.category_ids_N[pairs_M2[first, 1]]
        return replace(self, category_ids_N=category_ids_N)


def newest_rows(table: pa.Table, *, before_us: int) -> Int64s:
    """The newest row of each item, among the items published before a time.

    Args:
        table: rows of a catalog's partitions, oldest partition first.
        before_us: epoch microseconds UTC.

    Returns:
        Row numbers of `table`, in the order of the item ids.
    """
    (rows,) = np.nonzero(to_int64(table["published_at"]) < before_us)
    # the first of equals, seen from the end, is the newest
    rows = rows[::-1]
    _, place_N = np.unique(to_int64(table[id_column(table)])[rows], return_index=True)
    return rows[place_N]


def mounted_pairs(
    stories: pa.Table, *, story_catalog: Catalog, product_catalog: Catalog, products_before_us: int
) -> Int64s:
    """Each story with each product it mounts, as catalog rows; items of no catalog are left out.

    Args:
        stories: log rows, each story once.
        story_catalog, product_catalog: whose rows are meant.
        products_before_us: products published at or after this time are left out, epoch microseconds UTC.

    Returns:
        pairs_M2: distinct (story row, product row), sorted, [M, 2] int64.
    """
    mounted = stories["mounted_product_ids"].combine_chunks()
    story_rows_M = story_catalog.rows(to_int64(stories["story_id"]))[to_int64(pc.list_parent_indices(mounted))]
    product_rows_M = product_catalog.rows(to_int64(pc.list_flatten(mounted)))
    known_M = (story_rows_M > 0) & (product_rows_M > 0)
    known_M &= product_catalog.published_us_N[product_rows_M] < products_before_us
    return np.unique(np.stack([story_rows_M[known_M], product_rows_M[known_M]], axis=1), axis=0)


def id_column(table: pa.Table) -> str:
    """The name of a catalog table's id column."""
    return "story_id" if "story_id" in table.column_names else "product_id"


def covers_of(covers: pa.ChunkedArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Which rows of a log's column have a cover, and these covers, [K, 512].

    Raises:
        DataError: a cover has another width.
    """
    has_cover_R = np.asarray(pc.is_valid(covers).to_numpy(), bool)
    values = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float16) for chunk in covers.chunks]
    flat = np.concatenate([np.empty(0, np.float16), *values])
    if len(flat) != has_cover_R.sum() * COVER_WIDTH:
        raise DataError(
            "a cover has another width",
            expected=f"{COVER_WIDTH} values or null",
            where="the validated catalog",
            remedy="validate the catalog's days again",
        )
    return has_cover_R, flat.reshape(-1, COVER_WIDTH)
