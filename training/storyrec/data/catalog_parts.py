"""The catalogs of the validated days: rows as parts, covers out of the files themselves.

A cover is half as large in its file as in an array, so parts have none.

Suffixes: R = log rows, K = covers, N = items with the padding row.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.arrays import load_table, write_table
from storyrec.data.catalog import covers_of
from storyrec.data.parts import NUM_MAKERS, Files, Kind, Part
from storyrec.features.covers import OUTCOMES
from storyrec.logs.partitions import VALIDATED, iter_rows, open_parquet, read_days, read_footer
from storyrec.schema import TABLES
from storyrec.storage import Storage

ROWS = "rows.arrow"

Int64s = npt.NDArray[np.int64]


def load_rows(parts: Sequence[Part], *, schema: pa.Schema) -> pa.Table:
    """The rows of some parts, memory-mapped: all columns but `cover`, and `day`, the partition in days since 1970.

    Args:
        parts: oldest first.
        schema: of the log rows they were made of.
    """
    nothing = _without_cover(schema).empty_table().append_column("day", pa.array([], pa.int64()))
    return pa.concat_tables([nothing, *(load_table(part.folder / ROWS) for part in parts)])


def put_covers(storage: Storage, files: Files, *, schema: pa.Schema, path: Path, rows_R: Int64s) -> None:
    """Put the covers of a catalog's log into the rows of an array file.

    Args:
        storage: where the log is.
        files: of the log; their rows are meant, oldest day first, as in `load_rows`.
        schema: of the log rows.
        path: .npy of [N, 512] float16.
        rows_R: where the cover of each row goes, if it has one; 0 for nowhere.
    """
    cover = pa.schema([schema.field("cover")])

    def put(key: str, rows_R: Int64s) -> None:
        first = 0
        with open_parquet(storage, key) as reader:
            for table in iter_rows(reader, cover, where=f"{storage.url}/{key}"):
                has_cover_R, covers_KV = covers_of(table["cover"])
                rows_K = rows_R[first : first + len(has_cover_R)][has_cover_R]
                # mapped anew for each block, so that what is done with leaves the memory
                np.load(path, mmap_mode="r+")[rows_K[rows_K > 0]] = covers_KV[rows_K > 0]
                first += len(has_cover_R)

    keys = [key for _, keys in sorted(files.items()) for key in keys]
    ends = np.cumsum([read_footer(storage, key).num_rows for key in keys], dtype=np.int64)
    with ThreadPoolExecutor(NUM_MAKERS) as pool:
        for done in pool.map(put, keys, np.split(rows_R, ends[:-1])):
            del done


def catalog_kind(table: str) -> Kind:
    """Parts of `stories` or `products`."""
    return Kind(table, partial(_write, table=table, prefix=VALIDATED, schema=TABLES[table]))


def covers_kind(table: str, *, prefix: str) -> Kind:
    """Parts of what came of the pictures of a catalog table."""
    return Kind(f"covers-{table}", partial(_write, table=table, prefix=prefix, schema=OUTCOMES))


def _write(storage: Storage, files: Files, *, folder: Path, table: str, prefix: str, schema: pa.Schema) -> None:
    columns = _without_cover(schema).names
    found = read_days(storage, table, files, prefix=prefix, columns=columns, files=files, schema=schema)
    for problem in found.problems.values():
        raise problem
    write_table(folder / ROWS, found.table.append_column("day", pa.array(found.day_B)))


def _without_cover(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index("cover"))
