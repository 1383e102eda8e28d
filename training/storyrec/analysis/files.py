"""The Parquet files of a data root: days, rows and covers, by their footers."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.errors import MissingPartition
from storyrec.logs.conform import conform
from storyrec.logs.partitions import find_gap, iter_rows, list_files, open_parquet
from storyrec.schema import COVER_WIDTH, TABLES
from storyrec.storage import FolderStorage, Storage


@dataclass(frozen=True)
class TableFiles:
    """The files of one table.

    Attributes:
        paths: in order of day and name.
        days: each file's partition.
        num_rows: rows of each partition.
        num_covers: those with a cover; 0 for events.
    """

    paths: tuple[str, ...]
    days: tuple[date, ...]
    num_rows: Mapping[date, int]
    num_covers: Mapping[date, int]

    def until(self, last: date) -> "TableFiles":
        """The partitions up to a day."""
        num_files = bisect_right(self.days, last)
        num_rows, num_covers = (
            {day: count for day, count in counts.items() if day <= last} for counts in (self.num_rows, self.num_covers)
        )
        return TableFiles(self.paths[:num_files], self.days[:num_files], num_rows, num_covers)


def find_files(data: Path) -> dict[str, TableFiles]:
    """The files of every table of the log contract.

    Args:
        data: data root, a folder.

    Raises:
        MissingPartition: a table has no partition.
        SchemaMismatch: a file lacks a column, or has a type or a value that the log contract's does not hold.
        DataError: a file is no Parquet file, or one of a day's is missing.
    """
    storage = FolderStorage(data)
    listed = {table: list_files(storage, table) for table in TABLES}
    missing = [table for table, files in listed.items() if not files]
    if missing:
        raise MissingPartition(
            f"there is no partition of {', '.join(missing)}",
            expected="a data root: <table>/dt=YYYY-MM-DD/*.parquet for each of " + ", ".join(TABLES),
            where=str(data),
            remedy="name another folder, or make one with `storyrec simulate` or `storyrec import`",
        )
    for table, files in listed.items():
        for day, keys in files.items():
            if gap := find_gap(storage, table, day, keys=keys):
                raise gap
    return {table: _read_footers(storage, table, files) for table, files in listed.items()}


def _read_footers(storage: Storage, table: str, files: Mapping[date, list[str]]) -> TableFiles:
    keys = [(day, key) for day in sorted(files) for key in files[day]]
    num_rows, num_covers = dict.fromkeys(sorted(files), 0), dict.fromkeys(sorted(files), 0)
    for day, key in keys:
        with open_parquet(storage, key) as reader:
            _check_columns(reader, TABLES[table], where=f"{storage.url}/{key}")
            num_rows[day] += reader.metadata.num_rows
            num_covers[day] += _count_covers(reader.metadata)
    paths = tuple(f"{storage.url}/{key}" for _, key in keys)
    return TableFiles(paths, tuple(day for day, _ in keys), num_rows, num_covers)


def _check_columns(reader: pq.ParquetFile, schema: pa.Schema, *, where: str) -> None:
    """Refuse a file that `read_partition` would refuse for its columns; only those of other types are read."""
    found = [(field.name, field.type) for field in reader.schema_arrow]
    others = [field for field in schema if field.name != "cover" and (field.name, field.type) not in found]
    for _ in iter_rows(reader, pa.schema(others), where=where) if others else ():
        pass  # large integers and nanoseconds are seen in the values alone
    conform(reader.schema_arrow.empty_table(), schema, where=where)


def _count_covers(footer: pq.FileMetaData) -> int:
    """Covers take nearly all of a catalog's room and are not read: a missing one leaves one value, another 512."""
    num_values = num_rows = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] == "cover":
                num_values += column.num_values
                num_rows += group.num_rows
    return round((num_values - num_rows) / (COVER_WIDTH - 1))
