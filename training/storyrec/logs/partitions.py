"""Day partitions of the log contract, read and written with Arrow through a Storage.

A partition is every Parquet file in `<prefix><table>/dt=YYYY-MM-DD/`, in the order of the names; what lies
in folders below it is another program's.
What is read has the contract's columns and types: casts that lose nothing are made (float16 covers,
aware timestamps of another unit, narrower integers), columns beyond the contract are dropped.
A file goes through memory a batch of rows at a time.
"""

import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storyrec.errors import DataError, MissingPartition, StorageError
from storyrec.logs.conform import ColumnsMismatch, conform
from storyrec.schema import TABLES
from storyrec.storage import Storage

VALIDATED = "validated/"
QUARANTINE = "quarantine/"
EPOCH = date(1970, 1, 1)
RULE = pa.field("rule", pa.string())
NUM_READERS = 4
BATCH_ROWS = 131_072
COVER_BATCH_ROWS = 8_192  # 16 MiB of covers
BUFFER_BYTES = 2**20

_DAY = re.compile(r"dt=(\d{4}-\d{2}-\d{2})/[^/]+\.parquet$")
_PART = re.compile(r"/part-(\d{1,5})\.parquet$")


@dataclass(frozen=True)
class PartitionFile:
    """A file of a day, known by its footer."""

    key: str
    day: date
    footer: pq.FileMetaData


@dataclass(frozen=True)
class Partitions:
    """Rows of several days of one table, and what could not be read.

    `day_B` names each row's partition in days since 1970, ascending; `files` are those that the rows are
    from, in their order. `problems` holds the days that are left out, `broken_columns` which columns were
    the reason; `dropped` the columns beyond the contract.
    """

    table: pa.Table
    day_B: NDArray[np.int64]
    files: tuple[PartitionFile, ...]
    problems: Mapping[date, DataError]
    broken_columns: Mapping[date, tuple[str, ...]]
    dropped: tuple[str, ...]


def _as_it_is(rows: pa.Table) -> pa.Table:
    return rows


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def partition_key(table: str, day: date, *, prefix: str = "") -> str:
    """The key of the single file that `write_partition` makes."""
    return f"{prefix}{table}/dt={day}/part-0.parquet"


def quarantine_schema(table: str) -> pa.Schema:
    """The columns of quarantined rows: the table's own and the name of the first rule they broke."""
    return TABLES[table].append(RULE)


def list_days(storage: Storage, table: str, *, prefix: str = "") -> list[date]:
    """The days that have at least one Parquet file, ascending."""
    return sorted(list_files(storage, table, prefix=prefix))


def list_files(storage: Storage, table: str, *, prefix: str = "") -> dict[date, list[str]]:
    """The keys of every day's Parquet files, by day."""
    files: dict[date, list[str]] = {}
    for key in storage.list(f"{prefix}{table}/"):
        match = _DAY.search(key)
        if match and key == f"{prefix}{table}/{match.group(0)}":
            try:
                files.setdefault(date.fromisoformat(match.group(1)), []).append(key)
            except ValueError:
                continue
    return files


def find_gap(storage: Storage, table: str, day: date, *, keys: Iterable[str]) -> DataError | None:
    """The error for a day whose files are named part-<n>.parquet, from 0 on, and are not all there.

    Names with more than the number, as other writers have, say nothing.
    """
    numbers = {int(match.group(1)) for key in keys if (match := _PART.search(key))}
    missing = [f"part-{n}.parquet" for n in range(max(numbers, default=0)) if n not in numbers]
    if not missing:
        return None
    return DataError(
        f"{len(missing)} of the day's files are missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
        expected="files named part-<n>.parquet without a gap from 0 on",
        where=f"{storage.url}/{table}/dt={day}",
        remedy="bring the missing files, then run the same command again",
    )


def read_partition(
    storage: Storage,
    table: str,
    day: date,
    *,
    prefix: str = "",
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
) -> pa.Table:
    """One day of a table, in the contract's types.

    Args:
        storage: where the tables are.
        table: a name of `schema.TABLES`.
        day: the partition.
        prefix: what stands before the table's name, such as "validated/".
        columns: only these columns; all without it.
        schema: another schema than the table's own, such as the quarantine's.

    Raises:
        MissingPartition: the day has no file.
        SchemaMismatch: a column is missing or has another type.
        DataError: a file is no Parquet file.
    """
    keys = [key for key in storage.list(f"{prefix}{table}/dt={day}/") if _DAY.search(key)]
    if not keys:
        raise missing_partition(storage, table, day, prefix=prefix)
    wanted = _wanted(schema or TABLES[table], columns)
    parts: list[pa.Table] = []
    for key in keys:
        with open_parquet(storage, key) as reader:
            parts += iter_rows(reader, wanted, where=f"{storage.url}/{key}")
    return pa.concat_tables(parts)


def read_days(
    storage: Storage,
    table: str,
    days: Iterable[date],
    *,
    prefix: str = "",
    columns: Sequence[str] | None = None,
    files: Mapping[date, Sequence[str]] | None = None,
    schema: pa.Schema | None = None,
    prepare: Callable[[pa.Table], pa.Table] = _as_it_is,
) -> Partitions:
    """Many days of a table at once; days without a file are no problem, unreadable ones are reported.

    Args:
        storage: where the tables are.
        table: a name of `schema.TABLES`.
        days: the partitions.
        prefix: what stands before the table's name.
        columns: only these columns; all without it.
        files: spares the listing where the caller already has it from `list_files`.
        schema: another one than the table's own.
        prepare: what becomes of some rows of a file before the next ones are read.
    """
    files = list_files(storage, table, prefix=prefix) if files is None else files
    keys = [(key, day) for day in sorted(set(days)) for key in files.get(day, ())]
    wanted = _wanted(schema or TABLES[table], columns)

    def read(key: str) -> tuple[pa.Table, pq.FileMetaData, set[str]] | DataError:
        try:
            with open_parquet(storage, key) as reader:
                parts = [prepare(rows) for rows in iter_rows(reader, wanted, where=f"{storage.url}/{key}")]
                return pa.concat_tables(parts), reader.metadata, set(reader.schema_arrow.names) - set(wanted.names)
        except DataError as error:
            return error

    problems: dict[date, DataError] = {}
    broken: dict[date, tuple[str, ...]] = {}
    found: list[tuple[PartitionFile, pa.Table]] = []
    dropped = set[str]()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for (key, day), result in zip(keys, pool.map(read, (key for key, _ in keys)), strict=True):
            if isinstance(result, DataError):
                problems.setdefault(day, result)
                if isinstance(result, ColumnsMismatch):
                    broken[day] = tuple(dict.fromkeys(broken.get(day, ()) + result.columns))
                continue
            rows, footer, extra = result
            found.append((PartitionFile(key, day, footer), rows))
            dropped |= extra
    whole = [(file, rows) for file, rows in found if file.day not in problems]
    numbers = np.array([day_number(file.day) for file, _ in whole], np.int64)
    return Partitions(
        pa.concat_tables([prepare(wanted.empty_table()), *(rows for _, rows in whole)]),
        np.repeat(numbers, [rows.num_rows for _, rows in whole]),
        tuple(file for file, _ in whole),
        problems,
        broken,
        tuple(sorted(dropped)),
    )


def read_titles(storage: Storage, table: str, item_ids: Collection[int]) -> dict[int, str]:
    """The newest validated title of each item of "stories" or "products"; without those that have none."""
    key = {"stories": "story_id", "products": "product_id"}[table]
    days = list_days(storage, table, prefix=VALIDATED)
    rows = read_days(storage, table, days, prefix=VALIDATED, columns=[key, "title"]).table
    chosen = rows.filter(np.isin(rows[key].to_numpy(), np.fromiter(item_ids, np.int64, len(item_ids))))
    return dict(zip(chosen[key].to_pylist(), chosen["title"].to_pylist(), strict=True))


@contextmanager
def open_parquet(storage: Storage, key: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer is read.

    Raises:
        DataError: it is gone, or is no Parquet file.
    """
    file = storage.open(key)
    if file is None:
        raise DataError(
            "this file is gone: it was there when the folder was listed",
            expected="files that stay while they are read",
            where=f"{storage.url}/{key}",
            remedy="wait until whoever writes the partition is done, then run the same command again",
        )
    with file:
        with _readable(f"{storage.url}/{key}"):
            reader = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        yield reader


def read_footer(storage: Storage, key: str) -> pq.FileMetaData:
    """What a Parquet file says of itself.

    Raises:
        DataError: it is gone, or is no Parquet file.
    """
    with open_parquet(storage, key) as reader:
        return reader.metadata


def iter_rows(reader: pq.ParquetFile, schema: pa.Schema, *, where: str) -> Iterator[pa.Table]:
    """A file's rows in a schema, a batch at a time; of a file without rows, an empty table.

    Raises:
        SchemaMismatch: a column is missing or has another type.
        DataError: the file is damaged.
    """
    if not reader.metadata.num_rows:
        yield conform(reader.schema_arrow.empty_table().replace_schema_metadata(None), schema, where=where)[0]
    batch_rows = COVER_BATCH_ROWS if "cover" in schema.names else BATCH_ROWS
    batches = reader.iter_batches(batch_rows, columns=schema.names, use_threads=False)
    while True:
        with _readable(where):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # or text that is no UTF-8 fails later, far from the file's name
        yield conform(pa.Table.from_batches([batch]).replace_schema_metadata(None), schema, where=where)[0]


def write_partition(
    storage: Storage, table: str, day: date, rows: pa.Table, *, prefix: str = "", schema: pa.Schema | None = None
) -> None:
    """Write a day of a table as one file, replacing that file; whole or not at all.

    Raises:
        SchemaMismatch: a column of the contract is missing or has another type.
        StorageError: the disk is full or the location refuses; the old file stays.
    """
    key = partition_key(table, day, prefix=prefix)
    storage.write(key, encode(conform(rows, schema or TABLES[table], where=f"{storage.url}/{key}")[0]))


def encode(rows: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    file = ParquetBytes(rows.schema)
    file.add(rows)
    return file.close()


class ParquetBytes:
    """The bytes of a Parquet file that grows by tables of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        # covers are noise to a dictionary, and to a compressor
        repeating = [name for name in schema.names if name in ("source", "rule", "day")]
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, schema, compression="lz4", use_dictionary=repeating or False)

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        self._writer.write_table(rows)

    def close(self) -> bytes:
        """Write the footer."""
        self._writer.close()
        return self._sink.getvalue()


def missing_partition(storage: Storage, table: str, day: date, *, prefix: str = "") -> MissingPartition:
    """The error for a day that is not there; it lists the days around it."""
    days = list_days(storage, table, prefix=prefix)
    around = [d for d in days if d < day][-3:] + [d for d in days if d > day][:3]
    return MissingPartition(
        f"there is no partition {day} of '{table}'",
        expected=f"{prefix}{table}/dt={day}/*.parquet"
        + (f"; days around it: {', '.join(map(str, around))}" if around else "; the table has no day at all"),
        where=storage.url,
        remedy="wait for the day's logs, name a day that is there, or correct the location",
    )


def _wanted(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own errors have no number
            raise StorageError(
                f"cannot read this file: {said}",
                where=where,
                remedy="check the disk and the file's permissions, then run the same command again",
            ) from error
        raise DataError(
            f"this file is no readable Parquet file: {said}",
            expected="a whole Parquet file",
            where=where,
            remedy="write the partition again from its source",
        ) from error
