"""The quarantine: rows that broke a rule, shown in summary and, corrected, put back.

A file `quarantine/<table>/dt=D/part-<n>.parquet` holds the rejected rows of the raw file of that name, with
all their columns and the name of the first rule they broke. Rows that are put back come as a file of their
own beside the clean ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storyrec.config import Config
from storyrec.errors import ConfigError, DataError
from storyrec.logs.conform import conform
from storyrec.logs.known import CATALOG_IDS, KnownIds, read_pairs, replace_pairs
from storyrec.logs.partitions import (
    QUARANTINE,
    RULE,
    VALIDATED,
    PartitionFile,
    Partitions,
    day_number,
    encode,
    list_days,
    list_files,
    quarantine_schema,
    read_days,
    read_partition,
)
from storyrec.logs.reports import RuleReport, ValidationReport, read_report, report_key, write_report
from storyrec.logs.rows import Rows, measure_covers
from storyrec.logs.rules import RULES
from storyrec.schema import TABLES
from storyrec.storage import Storage, open_storage

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class QuarantinedRows:
    """The rows of one day and table that one rule rejected; examples without their covers."""

    day: date
    table: str
    rule: str
    says: str
    count: int
    examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Replay:
    """What putting rows back did; `next_step` says what has to be run for later days to see it."""

    day: date
    table: str
    accepted: int
    rejected: Mapping[str, int]
    next_step: str


def list_quarantine(storage: Storage, *, day: date | None = None) -> list[QuarantinedRows]:
    """Summarise the quarantine of a day, or of all days: by day, table and rule.

    Args:
        storage: the work location.
        day: only this day.
    """
    found = []
    for table in TABLES:
        says = {rule.name: rule.says for rule in RULES[table].row}
        for held in list_days(storage, table, prefix=QUARANTINE):
            if day is not None and held != day:
                continue
            schema = quarantine_schema(table)
            columns = [name for name in schema.names if name != "cover"]
            rows = read_partition(storage, table, held, prefix=QUARANTINE, schema=schema, columns=columns)
            shown = rows.drop_columns(["rule"])
            for rule in sorted(set(rows["rule"].to_pylist()), key=lambda name: [*says, name].index(name)):
                places = np.flatnonzero(pc.equal(rows["rule"], rule).to_numpy())
                examples = tuple(shown.take(places[:NUM_EXAMPLES]).to_pylist())
                found.append(QuarantinedRows(held, table, rule, says.get(rule, ""), len(places), examples))
    return sorted(found, key=lambda rows: rows.day)


def replay(config: Config, *, day: date, table: str, corrected: Path | None = None) -> Replay:
    """Judge a day's quarantined rows again and put those that now hold every rule into `validated/`.

    The rows are judged beside the day's clean rows, so a row that is already there stays a duplicate, and
    against the catalog so far as it is now. Features that were built from the day do not change by
    themselves: run `build_features` for it and for the days after it again.

    Args:
        config: the settings; only the work location is read.
        day: the partition.
        table: the table.
        corrected: a Parquet file with all of the partition's quarantined rows, corrected or as they were; it takes
            their place. Without it the rows are judged as they are, say after their story was put back.

    Raises:
        ConfigError: there is no such table.
        DataError: the day was not validated or is stopped, nothing is quarantined, or the file has another
            number of rows.
        SchemaMismatch: the file has other columns.
    """
    if table not in TABLES:
        raise ConfigError(f"'{table}' is no table", expected=", ".join(TABLES), remedy="name one of these")
    work = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    report = _valid_report(work, day)
    files = list_files(work, table, prefix=QUARANTINE).get(day, [])
    if not files:
        raise DataError(
            f"no row of '{table}' is quarantined on {day}", where=work.url, remedy="look at the quarantine's list"
        )
    held = _whole(read_days(work, table, [day], files={day: files}, schema=quarantine_schema(table)))
    candidates = held.table.drop_columns(["rule"])
    if corrected is not None:
        candidates = _read_corrected(corrected, table, candidates.num_rows)
    clean = _whole(read_days(work, table, [day], prefix=VALIDATED, prepare=measure_covers)).table
    together = pa.concat_tables([clean, measure_covers(candidates)])
    rows = Rows(together, np.full(together.num_rows, day_number(day)), _catalog(work))
    first_B = RULES[table].first_broken(RULES[table].masks(rows), num_rows=together.num_rows)[clean.num_rows :]
    good = candidates.filter(pa.array(first_B < 0))
    _put_back(work, table, day, good)
    _keep_rejected(work, table, held.files, candidates, first_B)
    counts = Counter(RULES[table].names(first_B[first_B >= 0]).to_pylist())
    rejected = {rule.name: counts[rule.name] for rule in RULES[table].row if counts[rule.name]}
    write_report(work, _updated(report, table, valid=clean.num_rows + good.num_rows, rejected=rejected))
    step = f"run build_features for {day} and the days after it again" if good.num_rows else "nothing changed"
    return Replay(day, table, good.num_rows, rejected, step)


def _valid_report(work: Storage, day: date) -> ValidationReport:
    report = read_report(work, day)
    if report is None or report.status != "valid":
        raise DataError(
            f"{day} is stopped: {'; '.join(report.reasons)}" if report else f"{day} was not validated",
            expected="a day with status valid: rows are put back beside its clean rows",
            where=f"{work.url}/{report_key(day)}",
            remedy="correct the day's raw logs if need be, and run validate_logs for it",
        )
    return report


def _whole(found: Partitions) -> Partitions:
    for problem in found.problems.values():
        raise problem
    return found


def _read_corrected(path: Path, table: str, num_rows: int) -> pa.Table:
    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the corrected rows cannot be read: {str(error).splitlines()[0]}",
            expected="a Parquet file",
            where=str(path),
            remedy="export the corrected rows as Parquet",
        ) from error
    if found.num_rows != num_rows:
        raise DataError(
            f"the file holds {found.num_rows} rows, the quarantine {num_rows}",
            expected="every quarantined row of the day and table, corrected or as it was",
            where=str(path),
            remedy="keep the rows that you cannot correct in the file: they stay quarantined",
        )
    return conform(found, TABLES[table], where=str(path), any_lossless=True)[0]


def _catalog(work: Storage) -> dict[str, KnownIds]:
    return {table: KnownIds.from_pairs(*read_pairs(work, table)) for table in CATALOG_IDS}


def _put_back(work: Storage, table: str, day: date, rows: pa.Table) -> None:
    """Add a file to a day's clean rows, and their ids to the catalog's.

    Before the rows leave the quarantine: a kill in between leaves them in both places, and another replay
    rejects them as duplicates.
    """
    if rows.num_rows:
        there = list_files(work, table, prefix=VALIDATED).get(day, [])
        number = sum("/replayed-" in key for key in there)
        work.write(f"{VALIDATED}{table}/dt={day}/replayed-{number:05}.parquet", encode(rows))
    if table in CATALOG_IDS:
        column = CATALOG_IDS[table]
        ids_M = _whole(read_days(work, table, [day], prefix=VALIDATED, columns=[column])).table[column].to_numpy()
        replace_pairs(work, table, days=[day], ids_M=ids_M, day_M=np.full(len(ids_M), day_number(day)))


def _keep_rejected(
    work: Storage, table: str, files: Sequence[PartitionFile], rows: pa.Table, first_B: NDArray[np.int8]
) -> None:
    """Leave in every file of the quarantine those of its rows that still break a rule, with that rule."""
    start = 0
    for file in files:
        part = slice(start, start + file.footer.num_rows)
        start = part.stop
        first = first_B[part]
        bad = rows.slice(part.start, file.footer.num_rows).filter(pa.array(first >= 0))
        if bad.num_rows:
            work.write(file.key, encode(bad.append_column(RULE, RULES[table].names(first[first >= 0]))))
        else:
            work.delete(file.key)


def _updated(report: ValidationReport, table: str, *, valid: int, rejected: Mapping[str, int]) -> ValidationReport:
    """The report with the counts as they are now; a rule's count is that of rows still quarantined by it."""
    old = report.tables[table]
    rules = dict(old.rules)
    for rule in RULES[table].row:
        count = rejected.get(rule.name, 0)
        rules[rule.name] = RuleReport(level=rule.level, status="violated" if count else "passed", count=count)
    note = "rows were put back from the quarantine"
    notes = (*(n for n in old.notes if n != note), note)
    new = old.model_copy(update={"valid": valid, "quarantined": dict(rejected), "rules": rules, "notes": notes})
    return report.model_copy(update={"tables": {**report.tables, table: new}})
