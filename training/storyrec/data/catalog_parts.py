"""The catalogs of the validated days as parts, whose covers stay on disk.

Suffixes: R = log rows, K = covers, N = items with the padding row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.arrays import load_table, write_table
from storyrec.data.catalog import covers_of
from storyrec.data.parts import Files, Kind, Part
from storyrec.features.covers import OUTCOMES
from storyrec.logs.partitions import VALIDATED, read_days
from storyrec.schema import TABLES
from storyrec.storage import Storage

COVERS_AT_A_TIME = 65_536

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CatalogRows:
    """Rows of a catalog's log, oldest partition first.

    Attributes:
        table: all columns but `cover`; `day`, the partition in days since 1970, and `has_cover`.
        covers: files of [K, 512] float16; together they are the covers of the rows that have one, in their order.
    """

    table: pa.Table
    covers: tuple[Path, ...]

    @property
    def day_R(self) -> Int64s:
        """Each row's partition."""
        return np.asarray(self.table["day"].to_numpy(), np.int64)

    @property
    def has_cover_R(self) -> npt.NDArray[np.bool_]:
        """Whether each row has a cover."""
        return np.asarray(self.table["has_cover"].to_numpy(), bool)

    def put_covers(self, path: Path, *, rows_R: Int64s) -> None:
        """Put the covers into the rows of an array file.

        Args:
            path: .npy of [N, 512] float16.
            rows_R: where the cover of each log row goes; 0 for nowhere.
        """
        rows_K = rows_R[self.has_cover_R]
        done = 0
        for covers in self.covers:
            num = len(np.load(covers, mmap_mode="r"))
            for first in range(0, num, COVERS_AT_A_TIME):
                rows = rows_K[done + first : done + min(first + COVERS_AT_A_TIME, num)]
                # mapped anew for each block, so that what is done with leaves the memory
                values = np.load(covers, mmap_mode="r")[first : first + COVERS_AT_A_TIME]
                np.load(path, mmap_mode="r+")[rows[rows > 0]] = values[rows > 0]
            done += num


def load_rows(parts: Sequence[Part], *, schema: pa.Schema) -> CatalogRows:
    """The rows of some parts, memory-mapped.

    Args:
        parts: oldest first.
        schema: of the log rows they were made of.
    """
    nothing = pa.table({name: pa.array([], kind) for name, kind in [("day", pa.int64()), ("has_cover", pa.bool_())]})
    for field in reversed(schema):
        if field.name != "cover":
            nothing = nothing.add_column(0, field, pa.array([], field.type))
    tables, covers = [nothing], list[Path]()
    for part in parts:
        for number in count():
            path = part.folder / f"rows.{number}.arrow"
            if not path.exists():
                break
            tables.append(load_table(path))
            covers.append(part.folder / f"covers.{number}.npy")
    return CatalogRows(pa.concat_tables(tables), tuple(covers))


def catalog_kind(table: str) -> Kind:
    """Parts of `stories` or `products`."""
    return Kind(table, partial(_write, table=table, prefix=VALIDATED, schema=TABLES[table]))


def covers_kind(table: str, *, prefix: str) -> Kind:
    """Parts of what came of the pictures of a catalog table."""
    return Kind(f"covers-{table}", partial(_write, table=table, prefix=prefix, schema=OUTCOMES))


def _write(storage: Storage, files: Files, *, folder: Path, table: str, prefix: str, schema: pa.Schema) -> None:
    for number, batch in enumerate(_batches(files)):
        found = read_days(storage, table, batch, prefix=prefix, files=batch, schema=schema)
        for problem in found.problems.values():
            raise problem
        has_cover_R, covers_KV = covers_of(found.table["cover"])
        rows = found.table.drop_columns(["cover"]).append_column("day", pa.array(found.day_B))
        write_table(
            folder / f"rows.{number}.arrow", rows.append_column("has_cover", pa.array(has_cover_R)).combine_chunks()
        )
        np.save(folder / f"covers.{number}.npy", covers_KV, allow_pickle=False)


def _batches(files: Files) -> Iterator[Files]:
    """The files of a large day one by one; days of a small month together."""
    if len(files) > 1:
        yield files
        return
    for day, keys in files.items():
        for key in keys:
            yield {day: [key]}
