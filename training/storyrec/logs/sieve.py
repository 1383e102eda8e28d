"""The sieve: every judged file becomes one of clean rows and, where rows broke a rule, one of quarantined rows.

Both have the raw file's name: what `validated/<table>/dt=D/part-3.parquet` holds came from part-3. Covers
stay float16 where they came so: readers cast to the contract's types anyway, and the disk holds half.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storyrec.errors import DataError
from storyrec.logs.judge import JudgedTable, Judgement
from storyrec.logs.partitions import (
    QUARANTINE,
    RULE,
    VALIDATED,
    ParquetBytes,
    PartitionFile,
    iter_rows,
    list_files,
    open_parquet,
    read_footer,
)
from storyrec.logs.reports import ValidationReport, report_key, reported_days
from storyrec.logs.rules import RULES
from storyrec.schema import TABLES
from storyrec.storage import Storage

NUM_WRITERS = 4  # each holds one file that is to be written

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class JudgedFile:
    """A raw file with the position of the first rule that each row broke, -1 for clean rows."""

    raw: PartitionFile
    table: str
    first_B: NDArray[np.int8]


def sift(logs: Storage, work: Storage, judgement: Judgement, reports: Sequence[ValidationReport]) -> None:
    """Write the clean and the quarantined rows of every judged day in place of what was there, and count them.

    The days' old reports go first. `validated/` of a stopped day stays as it is.

    Raises:
        DataError: a raw file is not the judged one any more, or the written files hold other rows than came in.
        StorageError: the disk is full or the location refuses; a rerun mends what is half written.
    """
    days = frozenset(judgement.days)
    stopped = {report.day for report in reports if report.status == "stopped"}
    replaced = [
        key
        for table in TABLES
        for prefix in (QUARANTINE, VALIDATED)
        for day, keys in list_files(work, table, prefix=prefix).items()
        if day in days and (prefix == QUARANTINE or day not in stopped)
        for key in keys
    ]
    _map(work.delete, [report_key(day) for day in sorted(reported_days(work).intersection(days))])
    files = [file for table, judged in judgement.tables.items() for file in _files(table, judged)]
    written = _map(lambda file: _sift_file(logs, work, file, keep_clean=file.raw.day not in stopped), files)
    _map(work.delete, sorted(set(replaced).difference(*written)))
    _check_counts(work, judgement, reports)


def _files(table: str, judged: JudgedTable) -> Iterator[JudgedFile]:
    start = 0
    for file in judged.read.files:
        stop = start + file.footer.num_rows
        yield JudgedFile(file, table, judged.first_B[start:stop])
        start = stop


def _sift_file(logs: Storage, work: Storage, file: JudgedFile, *, keep_clean: bool) -> list[str]:
    """Write what becomes of a file. -> the keys of its clean rows, where wanted, and of its other rows, if any."""
    bad_B = file.first_B >= 0
    if not keep_clean and not bad_B.any():
        return []
    where = f"{logs.url}/{file.raw.key}"
    with open_parquet(logs, file.raw.key) as reader:
        if not reader.metadata.equals(file.raw.footer):
            raise _changed(where)
        schema = _stored_schema(TABLES[file.table], found=reader.schema_arrow)
        clean = ParquetBytes(schema) if keep_clean else None
        bad = ParquetBytes(schema.append(RULE)) if bad_B.any() else None
        start = 0
        for rows in iter_rows(reader, schema, where=where):
            part = slice(start, start + rows.num_rows)
            if clean:
                clean.add(rows.filter(pa.array(~bad_B[part])) if bad_B[part].any() else rows)
            if bad:
                names = RULES[file.table].names(file.first_B[part][bad_B[part]])
                bad.add(rows.filter(pa.array(bad_B[part])).append_column(RULE, names))
            start = part.stop
    keys = []
    for prefix, sink in ((QUARANTINE, bad), (VALIDATED, clean)):
        if sink:
            keys.append(f"{prefix}{file.raw.key}")
            work.write(keys[-1], sink.close())
    return keys


def _stored_schema(schema: pa.Schema, *, found: pa.Schema) -> pa.Schema:
    """The contract's schema, with covers as narrow as the file has them."""
    place = schema.get_field_index("cover")
    if place < 0 or not pa.types.is_float16(found.field("cover").type.value_type):
        return schema
    return schema.set(place, pa.field("cover", pa.list_(pa.float16())))


def _check_counts(work: Storage, judgement: Judgement, reports: Sequence[ValidationReport]) -> None:
    """Count the rows of every day and table by the footers of the files: what came in is there, in one place."""
    for table, judged in judgement.tables.items():
        came = Counter[date]()
        for file in judged.read.files:
            came[file.day] += file.footer.num_rows
        counts = {prefix: _count_rows(work, table, judgement.days, prefix=prefix) for prefix in (VALIDATED, QUARANTINE)}
        for report in reports:
            said = report.tables.get(table)
            valid = said.valid if said and report.status == "stopped" else counts[VALIDATED][report.day]
            quarantined = counts[QUARANTINE][report.day]
            told = (said.valid, sum(said.quarantined.values())) if said else (0, 0)
            if came[report.day] != valid + quarantined or (valid, quarantined) != told:
                raise DataError(
                    f"{came[report.day]:,} rows of {table} came in on {report.day}, but {valid:,} are validated and "
                    f"{quarantined:,} quarantined",
                    expected="every row in one of the two" + f", {told[0]:,} and {told[1]:,}",
                    where=work.url,
                    remedy="run the same command again, and let no other program write there",
                )


def _count_rows(work: Storage, table: str, days: Sequence[date], *, prefix: str) -> Counter[date]:
    files = list_files(work, table, prefix=prefix)
    keys = [(day, key) for day in days for key in files.get(day, ())]
    counts = Counter[date]()
    for (day, _), footer in zip(keys, _map(partial(read_footer, work), [key for _, key in keys]), strict=True):
        counts[day] += footer.num_rows
    return counts


def _changed(where: str) -> DataError:
    return DataError(
        "this file was changed while the day was judged",
        expected="files that stay as they are",
        where=where,
        remedy="wait until whoever writes the partition is done, then run the same command again",
    )


def _map(function: Callable[[Given], Made], values: Iterable[Given]) -> list[Made]:
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        return list(pool.map(function, values))
