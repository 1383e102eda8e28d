"""Day partitions of the log contract, read and written with Arrow through a Storage.

A partition is every Parquet file below `<prefix><table>/dt=YYYY-MM-DD/`, in the order of the names.
What is read has the contract's columns and types: casts that lose nothing are made (float16 covers,
aware timestamps of another unit, narrower integers), columns beyond the contract are dropped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storyrec.errors import DataError, MissingPartition, SchemaMismatch
from storyrec.logs.conform import ColumnsMismatch, conform
from storyrec.schema import TABLES
from storyrec.storage import Storage

VALIDATED = "validated/"
QUARANTINE = "quarantine/"
EPOCH = date(1970, 1, 1)
NUM_READERS = 4
MAX_CHUNKS = 64

_DAY = re.compile(r"dt=(\d{4}-\d{2}-\d{2})/[^/]+\.parquet$")


@dataclass(frozen=True)
class Partitions:
    """Rows of several days of one table, and what could not be read.

    `day_B` names each row's partition in days since 1970, ascending. `problems` holds the days that
    are left out, `broken_columns` which columns were the reason; `dropped` the columns beyond the contract.
    """

    table: pa.Table
    day_B: NDArray[np.int64]
    problems: Mapping[date, DataError]
    broken_columns: Mapping[date, tuple[str, ...]]
    dropped: tuple[str, ...]


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def partition_key(table: str, day: date, *, prefix: str = "") -> str:
    """The key of the single file that `write_partition` makes."""
    return f"{prefix}{table}/dt={day}/part-0.parquet"


def quarantine_schema(table: str) -> pa.Schema:
    """The columns of quarantined rows: the table's own and the name of the first rule they broke."""
    return TABLES[table].append(pa.field("rule", pa.string()))


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
    keys = _parquet_keys(storage.list(f"{prefix}{table}/dt={day}/"))
    if not keys:
        raise missing_partition(storage, table, day, prefix=prefix)
    wanted = _wanted(schema or TABLES[table], columns)
    return pa.concat_tables([conform(_read(storage, k, columns), wanted, where=f"{storage.url}/{k}")[0] for k in keys])


def read_days(
    storage: Storage,
    table: str,
    days: Iterable[date],
    *,
    prefix: str = "",
    columns: Sequence[str] | None = None,
    files: Mapping[date, Sequence[str]] | None = None,
    schema: pa.Schema | None = None,
) -> Partitions:
    """Many days of a table at once; days without a file are no problem, unreadable ones are reported.

    Files of the same layout are cast together, so thousands of small partitions cost little more than one.
    `files` spares the listing where the caller already has it from `list_files`; `schema` is another one than
    the table's own.
    """
    files = list_files(storage, table, prefix=prefix) if files is None else files
    keys = [(key, day) for day in sorted(set(days)) for key in files.get(day, ())]
    wanted = _wanted(schema or TABLES[table], columns)
    problems: dict[date, DataError] = {}
    broken: dict[date, tuple[str, ...]] = {}
    groups: dict[bytes, list[int]] = {}
    raws: list[pa.Table] = []
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for index, raw in enumerate(pool.map(partial(_read_or_error, storage, columns), (key for key, _ in keys))):
            if isinstance(raw, DataError):
                problems.setdefault(keys[index][1], raw)
                raw = wanted.empty_table()
            groups.setdefault(raw.schema.serialize().to_pybytes(), []).append(index)
            raws.append(raw)
    parts, orders, dropped = [], [], set[str]()
    for members in groups.values():
        try:
            part, extra = conform(pa.concat_tables([raws[i] for i in members]), wanted, where=f"{storage.url}/{table}")
            parts.append(part)
            orders.append(np.repeat(members, [raws[i].num_rows for i in members]))
            dropped |= extra
            continue
        except SchemaMismatch:
            pass
        for i in members:  # name the file and the day that are to blame
            key, day = keys[i]
            try:
                part, extra = conform(raws[i], wanted, where=f"{storage.url}/{key}")
            except ColumnsMismatch as error:
                problems.setdefault(day, error)
                broken[day] = tuple(dict.fromkeys(broken.get(day, ()) + error.columns))
                continue
            parts.append(part)
            orders.append(np.full(part.num_rows, i))
            dropped |= extra
    rows = pa.concat_tables([wanted.empty_table(), *parts])
    order_B = np.concatenate([np.empty(0, np.int64), *orders])
    if (np.diff(order_B) < 0).any():
        sorting = np.argsort(order_B, kind="stable")
        rows, order_B = rows.take(sorting), order_B[sorting]
    day_B = np.array([day_number(day) for _, day in keys], np.int64)[order_B]
    if problems:
        keep = ~np.isin(day_B, [day_number(day) for day in problems])
        rows, day_B = rows.filter(pa.array(keep)), day_B[keep]
    return Partitions(rows, day_B, problems, broken, tuple(sorted(dropped)))


def concat_partitions(parts: Sequence[Partitions]) -> Partitions:
    """Partitions of one table, read one after the other in ascending days, as one."""
    rows = pa.concat_tables([part.table for part in parts])
    if rows.column(0).num_chunks > MAX_CHUNKS:
        rows = rows.combine_chunks()  # cutting a day out of thousands of chunks is slow
    return Partitions(
        rows,
        np.concatenate([part.day_B for part in parts]),
        {day: problem for part in parts for day, problem in part.problems.items()},
        {day: columns for part in parts for day, columns in part.broken_columns.items()},
        tuple(sorted({name for part in parts for name in part.dropped})),
    )


def write_partition(
    storage: Storage, table: str, day: date, rows: pa.Table, *, prefix: str = "", schema: pa.Schema | None = None
) -> None:
    """Write a day of a table as one file, replacing what it held; whole or not at all.

    Raises:
        SchemaMismatch: a column of the contract is missing or has another type.
        StorageError: the disk is full or the location refuses; the old partition stays.
    """
    key = partition_key(table, day, prefix=prefix)
    storage.write(key, encode(conform(rows, schema or TABLES[table], where=f"{storage.url}/{key}")[0]))


def encode(rows: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    # covers are noise to a dictionary, and to a compressor
    repeating = [name for name in rows.column_names if name in ("source", "rule", "day")]
    pq.write_table(rows, sink, compression="lz4", use_dictionary=repeating or False)
    content: bytes = sink.getvalue().to_pybytes()
    return content


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


def _parquet_keys(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.endswith(".parquet")]


def _wanted(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _read(storage: Storage, key: str, columns: Sequence[str] | None) -> pa.Table:
    content = storage.read(key)
    try:
        rows = pq.ParquetFile(pa.BufferReader(content)).read(columns and list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"this file is no readable Parquet file: {str(error).splitlines()[0]}",
            expected="a whole Parquet file",
            where=f"{storage.url}/{key}",
            remedy="write the partition again from its source",
        ) from error
    return rows.replace_schema_metadata(None)


def _read_or_error(storage: Storage, columns: Sequence[str] | None, key: str) -> pa.Table | DataError:
    try:
        return _read(storage, key, columns)
    except DataError as error:
        return error
