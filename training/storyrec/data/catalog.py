"""The items of one domain as parallel arrays; row 0 is padding.

Suffixes: N = items with the padding row, R = rows of the catalog's partitions, V = raw cover, 512,
M = pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.data.validated import ValidatedLogs
from storyrec.errors import DataError
from storyrec.features.sequences import midnight_us, to_int64
from storyrec.logs.partitions import Partitions, day_number
from storyrec.schema import COVER_WIDTH, SOURCES

Int64s = npt.NDArray[np.int64]


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
        rows = np.minimum(np.searchsorted(self.item_ids_N, ids), len(self.item_ids_N) - 1)
        return np.where(self.item_ids_N[rows] == ids, rows, 0)

    @classmethod
    def from_table(cls, table: pa.Table, *, newest_N: Int64s) -> "Catalog":
        """A catalog out of its log table.

        Args:
            table: `stories` or `products` of the log contract.
            newest_N: which rows of it, from `newest_rows`; the padding row is put before them.
        """
        small = table.drop_columns(["cover"]).take(pa.array(newest_N))
        rows_R = np.zeros(len(table), np.int64)
        rows_R[newest_N] = np.arange(1, len(newest_N) + 1)
        sources = np.full(len(newest_N), -1, np.int8)
        if "source" in small.column_names:
            places = pc.index_in(small["source"], value_set=pa.array(SOURCES))
            sources = np.asarray(pc.fill_null(places, -1).to_numpy(), np.int8)
        visual_raw_NV = np.zeros((len(newest_N) + 1, COVER_WIDTH), np.float16)
        _put_covers(visual_raw_NV, table["cover"], rows_R=rows_R)
        has_category = "category_id" in small.column_names
        categories = to_int64(small["category_id"]) if has_category else np.zeros(len(newest_N), np.int64)
        return cls(
            item_ids_N=np.concatenate([[0], to_int64(small[id_column(small)])]),
            titles=["", *pc.fill_null(small["title"], "").to_pylist()],
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


@dataclass(frozen=True)
class CatalogLog:
    """A catalog at the end of the run's day and the log rows behind it.

    Attributes:
        catalog: the items.
        newest: the newest log row of each item, covers left out.
        earlier: each item once as the days before the held-out ones knew it, covers left out.
    """

    catalog: Catalog
    newest: pa.Table
    earlier: pa.Table


def read_catalog(logs: ValidatedLogs, name: str, *, holdout_start: date) -> CatalogLog:
    """A catalog at the end of the run's day, and its log rows as they were before the held-out days.

    Args:
        logs: the validated days.
        name: "stories" or "products".
        holdout_start: the first held-out day.

    Raises:
        DataError: there is no item, or no title.
    """
    rows = logs.read(name)
    newest_N = newest_rows(rows.table, before_us=midnight_us(logs.day + timedelta(days=1)))
    catalog = Catalog.from_table(rows.table, newest_N=newest_N)
    if not any(catalog.titles):
        raise DataError(
            f"the catalog of {name} has {len(newest_N)} items and no title",
            expected="at least one item with a title, published up to the run's day",
            where=f"validated/{name}",
            remedy=f"look into quarantine/{name} and the validation reports",
        )
    embedded = logs.covers(name)
    rows_R = _embedded_rows(embedded, catalog=catalog, log=rows, newest_N=newest_N)
    _put_covers(catalog.visual_raw_NV, embedded.table["cover"], rows_R=rows_R)
    coverless = rows.table.drop_columns(["cover"])
    earlier = coverless.slice(0, int(np.searchsorted(rows.day_B, day_number(holdout_start))))
    return CatalogLog(
        catalog,
        newest=coverless.take(pa.array(newest_N)),
        earlier=earlier.take(pa.array(newest_rows(earlier, before_us=midnight_us(holdout_start)))),
    )


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


def _embedded_rows(embedded: Partitions, *, catalog: Catalog, log: Partitions, newest_N: Int64s) -> Int64s:
    """The catalog row that takes each embedded cover; 0 where the item's newest log row is not what was embedded."""
    rows_R = catalog.rows(to_int64(embedded.table["item_id"]))
    (known,) = np.nonzero(rows_R)
    place = newest_N[rows_R[known] - 1]
    same_uri = pc.equal(log.table["cover_uri"].take(pa.array(place)), embedded.table["cover_uri"].take(pa.array(known)))
    is_same = np.asarray(pc.fill_null(same_uri, False).to_numpy(), bool) & (log.day_B[place] == embedded.day_B[known])
    is_same &= np.asarray(log.table["cover"].is_null().to_numpy(), bool)[place]
    rows_R[known[~is_same]] = 0
    return rows_R


def _put_covers(visual_raw_NV: npt.NDArray[np.float16], covers: pa.ChunkedArray, *, rows_R: Int64s) -> None:
    """Put each cover into its row; row 0 takes none. One chunk at a time: 32-bit covers take twice the room."""
    start = 0
    for chunk in covers.chunks:
        mask = np.asarray(chunk.is_valid().to_numpy(zero_copy_only=False), bool)
        values = np.asarray(chunk.flatten().to_numpy(zero_copy_only=False))
        if len(values) != mask.sum() * COVER_WIDTH:
            raise DataError(
                "a cover has another width",
                expected=f"{COVER_WIDTH} values or null",
                where="the validated catalog",
                remedy="validate the catalog's days again",
            )
        rows = rows_R[start : start + len(chunk)][mask]
        visual_raw_NV[rows[rows > 0]] = values.reshape(-1, COVER_WIDTH)[rows > 0]
        start += len(chunk)
