"""The catalogs of a dataset: put together from the days' parts, straight into the dataset's folder.

Suffixes: N = items with the padding row, R = log rows, M = pairs.
"""

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.arrays import load_array, load_record, new_array, save_record
from storyrec.data.catalog import Catalog, mounted_pairs, newest_rows
from storyrec.data.catalog_parts import catalog_kind, covers_kind, load_rows, put_covers
from storyrec.data.parts import Parts
from storyrec.data.validated import ValidatedLogs
from storyrec.errors import DataError
from storyrec.features.covers import OUTCOMES
from storyrec.features.sequences import midnight_us, to_int64
from storyrec.logs.partitions import day_number
from storyrec.schema import COVER_WIDTH, TABLES

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WrittenCatalog:
    """What was written.

    Attributes:
        catalog: at the end of the run's day.
        known_titles: of each item, as the days before the held-out ones knew it.
        covers: done when the catalog's covers are in their file.
    """

    catalog: Catalog
    known_titles: pa.ChunkedArray
    covers: Future[None]


def write_catalog(
    logs: ValidatedLogs,
    parts: Parts,
    name: str,
    *,
    folder: Path,
    holdout_start: date,
    pool: Executor,
    products: Catalog | None = None,
) -> WrittenCatalog:
    """Write the catalog at the end of the run's day, stories with their pairs; the pool copies the covers."""
    files, schema = logs.files[name], TABLES[name]
    rows = load_rows(parts.make(catalog_kind(name), files, days=files), schema=schema)
    newest_N = newest_rows(rows, before_us=midnight_us(logs.day + timedelta(days=1)))
    visual = folder / f"{name}.visual_raw_NV.npy"
    new_array(visual, (len(newest_N) + 1, COVER_WIDTH), np.float16)
    catalog = Catalog.from_table(rows, newest_N=newest_N, visual_raw_NV=load_array(visual))
    if not pc.any(pc.not_equal(pa.array(catalog.titles), "")).as_py():
        raise DataError(
            f"the catalog of {name} has {len(newest_N)} items and no title",
            expected="at least one item with a title, published up to the run's day",
            where=f"validated/{name}",
            remedy=f"look into quarantine/{name} and the validation reports",
        )
    rows_R = np.zeros(rows.num_rows, np.int64)
    rows_R[newest_N] = np.arange(1, len(newest_N) + 1)
    prefix, pictures = logs.covers[name]
    embedded = load_rows(parts.make(covers_kind(name, prefix=prefix), pictures, days=pictures), schema=OUTCOMES)
    embedded_rows_R = _embedded_rows(embedded, catalog=catalog, log=rows, newest_N=newest_N)

    def put_all_covers() -> None:
        put_covers(logs.storage, pictures, schema=OUTCOMES, path=visual, rows_R=embedded_rows_R)
        put_covers(logs.storage, files, schema=schema, path=visual, rows_R=rows_R)  # the log's own cover wins

    covers = pool.submit(put_all_covers)
    before = rows.slice(0, int(np.searchsorted(rows["day"].to_numpy(), day_number(holdout_start))))
    known = before.take(pa.array(newest_rows(before, before_us=midnight_us(holdout_start))))
    if products is not None:
        end_us, start_us = midnight_us(logs.day + timedelta(days=1)), midnight_us(holdout_start)
        newest = rows.take(pa.array(newest_N))
        all_pairs_M2, pairs_M2 = (
            mounted_pairs(table, story_catalog=catalog, product_catalog=products, products_before_us=before_us)
            for table, before_us in ((newest, end_us), (known, start_us))
        )
        catalog = catalog.with_mounted_categories(all_pairs_M2, products=products)
        is_new_M = catalog.published_us_N[all_pairs_M2[:, 0]] >= start_us
        np.save(folder / "pairs_M2.npy", pairs_M2)
        np.save(folder / "holdout_pairs_M2.npy", all_pairs_M2[is_new_M])
    save_record(catalog, folder, name=name, without=("visual_raw_NV",))
    # what is written need not be in memory any longer
    return WrittenCatalog(load_record(Catalog, folder, name=name), known["title"], covers)


def _embedded_rows(embedded: pa.Table, *, catalog: Catalog, log: pa.Table, newest_N: Int64s) -> Int64s:
    """The catalog row that takes each embedded cover; 0 where the item's newest log row is not what was embedded."""
    rows_R = catalog.rows(to_int64(embedded["item_id"]))
    (known,) = np.nonzero(rows_R)
    newest, outcomes = log.take(pa.array(newest_N[rows_R[known] - 1])), embedded.take(pa.array(known))
    is_same = pc.and_(
        pc.equal(newest["cover_uri"], outcomes["cover_uri"]),
        pc.equal(newest["day"], outcomes["day"]),
    )
    rows_R[known[~np.asarray(pc.fill_null(is_same, False).to_numpy(), bool)]] = 0
    return rows_R
