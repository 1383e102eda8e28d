"""The catalogs of a dataset: put together from the days' parts, straight into the dataset's folder.

Suffixes: N = items with the padding row, R = log rows, M = pairs.
"""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.arrays import load_array, new_array, save_record
from storyrec.data.catalog import Catalog, mounted_pairs, newest_rows
from storyrec.data.catalog_parts import CatalogRows, catalog_kind, covers_kind, load_rows
from storyrec.data.parts import Parts
from storyrec.data.validated import ValidatedLogs
from storyrec.errors import DataError
from storyrec.features.covers import OUTCOMES
from storyrec.features.sequences import midnight_us, to_int64
from storyrec.logs.partitions import day_number
from storyrec.schema import COVER_WIDTH, TABLES

Int64s = npt.NDArray[np.int64]


def write_catalog(
    logs: ValidatedLogs, parts: Parts, name: str, folder: Path, *, holdout_start: date, products: Catalog | None = None
) -> tuple[Catalog, pa.Table]:
    """Write the catalog at the end of the run's day, stories with their pairs.

    Returns:
        The catalog, and the log row of each item as the days before the held-out ones knew it.
    """
    files = logs.files[name]
    rows = load_rows(parts.make(catalog_kind(name), files, days=files), schema=TABLES[name])
    newest_N = newest_rows(rows.table, before_us=midnight_us(logs.day + timedelta(days=1)))
    visual = folder / f"{name}.visual_raw_NV.npy"
    new_array(visual, (len(newest_N) + 1, COVER_WIDTH), np.float16)
    catalog = Catalog.from_table(rows.table, newest_N=newest_N, visual_raw_NV=load_array(visual))
    if not pc.any(pc.not_equal(pa.array(catalog.titles), "")).as_py():
        raise DataError(
            f"the catalog of {name} has {len(newest_N)} items and no title",
            expected="at least one item with a title, published up to the run's day",
            where=f"validated/{name}",
            remedy=f"look into quarantine/{name} and the validation reports",
        )
    rows_R = np.zeros(rows.table.num_rows, np.int64)
    rows_R[newest_N] = np.arange(1, len(newest_N) + 1)
    rows.put_covers(visual, rows_R=rows_R)
    prefix, files = logs.covers[name]
    embedded = load_rows(parts.make(covers_kind(name, prefix=prefix), files, days=files), schema=OUTCOMES)
    embedded.put_covers(visual, rows_R=_embedded_rows(embedded, catalog=catalog, log=rows, newest_N=newest_N))

    before = rows.table.slice(0, int(np.searchsorted(rows.day_R, day_number(holdout_start))))
    known = before.take(pa.array(newest_rows(before, before_us=midnight_us(holdout_start))))
    if products is not None:
        end_us, start_us = midnight_us(logs.day + timedelta(days=1)), midnight_us(holdout_start)
        newest = rows.table.take(pa.array(newest_N))
        all_pairs_M2, pairs_M2 = (
            mounted_pairs(table, story_catalog=catalog, product_catalog=products, products_before_us=before_us)
            for table, before_us in ((newest, end_us), (known, start_us))
        )
        catalog = catalog.with_mounted_categories(all_pairs_M2, products=products)
        is_new_M = catalog.published_us_N[all_pairs_M2[:, 0]] >= start_us
        np.save(folder / "pairs_M2.npy", pairs_M2)
        np.save(folder / "holdout_pairs_M2.npy", all_pairs_M2[is_new_M])
    save_record(catalog, folder, name=name, without=("visual_raw_NV",))
    return catalog, known


def _embedded_rows(embedded: CatalogRows, *, catalog: Catalog, log: CatalogRows, newest_N: Int64s) -> Int64s:
    """The catalog row that takes each embedded cover; 0 where the item's newest log row is not what was embedded."""
    rows_R = catalog.rows(to_int64(embedded.table["item_id"]))
    (known,) = np.nonzero(rows_R)
    place = newest_N[rows_R[known] - 1]
    same_uri = pc.equal(log.table["cover_uri"].take(pa.array(place)), embedded.table["cover_uri"].take(pa.array(known)))
    is_same = np.asarray(pc.fill_null(same_uri, False).to_numpy(), bool) & (log.day_R[place] == embedded.day_R[known])
    is_same &= ~log.has_cover_R[place]
    rows_R[known[~is_same]] = 0
    return rows_R
