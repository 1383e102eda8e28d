"""The step `validate_logs`: a day of raw logs becomes clean partitions, a quarantine and a report.

`catch_up` brings the log's earlier days to the same state in large batches, so that the catalog so far
and the trailing days are there. Order of writing, so that a kill at any point is mended by a rerun: the
old report goes, then quarantine, clean partitions, catalog ids and data docs are written, the report last.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from storyrec.config import Config
from storyrec.errors import DataError, DayStopped, StorageError
from storyrec.logs.contract import Judged, Outcome, check_contract
from storyrec.logs.judge import Judgement, judge
from storyrec.logs.known import CATALOG_IDS, read_pairs, replace_pairs
from storyrec.logs.partitions import (
    NUM_READERS,
    Partitions,
    day_number,
    find_gap,
    list_files,
    missing_partition,
    read_days,
    read_footer,
)
from storyrec.logs.reports import ValidationReport, make_reports, read_report, report_key, reported_days, write_report
from storyrec.logs.rows import measure_covers
from storyrec.logs.rules import Bounds, DayFacts
from storyrec.logs.sieve import sift
from storyrec.progress import Tracker, track
from storyrec.schema import TABLES
from storyrec.storage import Storage, open_storage

DATA_DOCS = "data_docs"
MAX_BATCH_BYTES = 512 * 2**20
NUM_WRITERS = 8

Files = Mapping[str, Mapping[date, Sequence[str]]]


def validate_logs(config: Config, *, day: date) -> ValidationReport:
    """Validate one day of all tables.

    Writes the day's clean rows to `validated/`, its other rows to `quarantine/`, the data docs, and the
    report `reports/dt=D.json` last. A rerun replaces all of it. Earlier days of the log that have no
    report are caught up first.

    Raises:
        MissingPartition: the day has no impressions in the log; nothing is written.
        SchemaMismatch, DataError: a partition of the day has other columns or cannot be read.
        DayStopped: the day broke a rule of level *stop*.
            After the last two, quarantine, data docs and a report with status "stopped" are there, and
            `validated/` is as it was.
    """
    logs, work = _storages(config)
    files = {table: list_files(logs, table) for table in TABLES}
    if day not in files["impressions"]:
        raise missing_partition(logs, "impressions", day)
    if _backlog(files, work, day=day):
        catch_up(config, day=day)
    with track("validate_logs", total=4) as tracker:
        read = _read(logs, files, [day])
        tracker.advance(note="rows read")
        trailing = _trailing_reports(work, day=day, num_days=config.rules.trailing_days)
        judgement = _judge(config, read, files, work, days=[day], trailing=trailing)
        tracker.advance(note="rows judged")
        (report,) = _finish(logs, work, judgement, name=f"dt={day}", caught_up=False, tracker=tracker)
    for part in read.values():
        for problem in part.problems.values():
            raise problem
    if report.status == "stopped":
        raise DayStopped(
            f"{day} is stopped: " + "; ".join(report.reasons),
            expected="a day that keeps every rule of level stop",
            where=f"{work.url}/{report_key(day)} (data docs: {work.url}/{report.data_docs}/index.html)",
            remedy="correct the day's logs and run the same command again; the day's bad rows are in the quarantine",
        )
    return report


def catch_up(config: Config, *, day: date) -> tuple[date, ...]:
    """Validate all earlier days of the log that have no report yet, as few large batches.

    Rules that compare a day with its trailing days are not judged here. A day that breaks a stop rule or
    cannot be read gets a report with status "stopped" and no clean partition; the other days go on.

    Returns:
        The days that were caught up.
    """
    logs, work = _storages(config)
    files = {table: list_files(logs, table) for table in TABLES}
    backlog = _backlog(files, work, day=day)
    if not backlog:
        return ()
    with track("catch_up", total=len(backlog)) as tracker:
        rest = backlog
        while rest:
            days = _first_batch(logs, files, rest)
            judgement = _judge(config, _read(logs, files, days), files, work, days=days, trailing=None)
            name = f"catch-up-{days[0]}-to-{days[-1]}" if len(days) > 1 else f"dt={days[0]}"
            _finish(logs, work, judgement, name=name, caught_up=True, tracker=None)
            del judgement  # or two batches would be in memory
            rest = rest[len(days) :]
            tracker.advance(len(days), note=str(days[-1]))
    return tuple(backlog)


def _storages(config: Config) -> tuple[Storage, Storage]:
    endpoint = config.locations.s3_endpoint
    return (
        open_storage(config.locations.logs, s3_endpoint=endpoint),
        open_storage(config.locations.work, s3_endpoint=endpoint),
    )


def _backlog(files: Files, work: Storage, *, day: date) -> list[date]:
    earlier = {d for days in files.values() for d in days if d < day}
    return sorted(earlier - reported_days(work)) if earlier else []


def _read(logs: Storage, files: Files, days: Sequence[date]) -> dict[str, Partitions]:
    """Read days for judging: without covers. A day whose files are not all there is a problem, as an unreadable one."""
    read = {}
    for table in TABLES:
        found = {day: find_gap(logs, table, day, keys=files[table].get(day, ())) for day in days}
        gaps = {day: gap for day, gap in found.items() if gap}
        part = read_days(logs, table, set(days) - set(gaps), files=files[table], prepare=measure_covers)
        read[table] = replace(part, problems={**part.problems, **gaps})
    return read


def _first_batch(logs: Storage, files: Files, days: Sequence[date]) -> Sequence[date]:
    """The first of the days that fit into the memory that a batch may take, by the footers of their files."""
    size = 0
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for number, day in enumerate(days):
            keys = [key for table in TABLES for key in files[table].get(day, ())]
            size += sum(pool.map(partial(_judged_bytes, logs), keys))
            if number and size > MAX_BATCH_BYTES:
                return days[:number]
    return days


def _judged_bytes(logs: Storage, key: str) -> int:
    """About what a file's rows take in memory without the numbers of their covers."""
    try:
        footer = read_footer(logs, key)
    except DataError:
        return 0  # reading will report it
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    columns = [(group, group.column(index)) for group in groups for index in range(group.num_columns)]
    return sum(
        max(8 * group.num_rows, column.total_uncompressed_size)
        for group, column in columns
        if not column.path_in_schema.startswith("cover.")
    )


def _trailing_reports(work: Storage, *, day: date, num_days: int) -> list[ValidationReport]:
    found = (read_report(work, day - timedelta(days=back)) for back in range(1, num_days + 1))
    return [report for report in found if report is not None and report.status == "valid"]


def _judge(
    config: Config,
    read: Mapping[str, Partitions],
    files: Files,
    work: Storage,
    *,
    days: Sequence[date],
    trailing: Sequence[ValidationReport] | None,
) -> Judgement:
    rules = config.rules

    def measure(
        table: str, day: date, num_rows: int, click_rate: float | None, quarantined_share: float | None
    ) -> DayFacts:
        before = [report.tables[table] for report in trailing or () if table in report.tables]
        rows = [report.rows for report in before]
        rates = [report.click_rate for report in before if report.click_rate is not None]
        enough = median(rows) >= rules.min_trailing_rows if rows else False
        return DayFacts(
            num_rows,
            click_rate,
            quarantined_share,
            _band(rows, rules.row_count_band, min_days=rules.min_trailing_days) if enough else None,
            _band(rates, rules.click_rate_band, min_days=rules.min_trailing_days) if enough else None,
            rules.max_quarantined_share,
        )

    numbers = [day_number(day) for day in days]
    known = {}
    for table in CATALOG_IDS:
        ids_M, day_M = read_pairs(work, table)
        keep = ~np.isin(day_M, numbers)
        known[table] = ids_M[keep], day_M[keep]
    present = {table: frozenset(files[table]).intersection(days) for table in TABLES}
    return judge(read, days=days, present=present, known=known, measure=measure, judge_absent=trailing is not None)


def _band(values: Sequence[float], band: tuple[float, float], *, min_days: int) -> Bounds | None:
    return (band[0] * median(values), band[1] * median(values)) if len(values) >= min_days else None


def _finish(
    logs: Storage, work: Storage, judgement: Judgement, *, name: str, caught_up: bool, tracker: Tracker | None
) -> list[ValidationReport]:
    """Check the contract, then write everything that the days are to have."""
    with _scratch_folder() as docs:
        outcomes = _check(judgement, name=name, docs=docs, with_days=not caught_up)
        if tracker:
            tracker.advance(note="contract checked")
        reports = make_reports(judgement, outcomes, caught_up=caught_up, data_docs=f"{DATA_DOCS}/{name}")
        sift(logs, work, judgement, reports)
        valid = [report.day for report in reports if report.status == "valid"]
        if valid:
            _write_catalog_ids(work, judgement, days=valid)
        _write_docs(work, docs, name=name)
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        list(pool.map(lambda report: write_report(work, report), reports))
    if tracker:
        tracker.advance(note="written")
    return reports


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise StorageError(
            f"cannot write the data docs: {error.strerror or error}",
            where=tempfile.gettempdir(),
            remedy="free space there or name another folder in TMPDIR, then run the same command again",
        ) from error


def _check(judgement: Judgement, *, name: str, docs: Path, with_days: bool) -> dict[str, dict[str, Outcome]]:
    """Run Great Expectations over every table that could be read and has something to judge."""
    last = judgement.days[-1]
    tables = {
        table: Judged(
            judged.rows, judged.masks, judged.first_B >= 0, judgement.facts.get((table, last)) if with_days else None
        )
        for table, judged in judgement.tables.items()
        if judged.rows.table.num_rows or (with_days and (table, last) in judgement.facts)
    }
    return check_contract(tables, name=name, run_time=datetime(last.year, last.month, last.day, tzinfo=UTC), docs=docs)


def _write_catalog_ids(work: Storage, judgement: Judgement, *, days: Sequence[date]) -> None:
    for table, column in CATALOG_IDS.items():
        judged = judgement.tables[table]
        keep = (judged.first_B < 0) & np.isin(judged.rows.day_B, [day_number(day) for day in days])
        ids_M, day_M = judged.rows.ids(column)[keep], judged.rows.day_B[keep]
        replace_pairs(work, table, days=days, ids_M=ids_M, day_M=day_M)


def _write_docs(work: Storage, docs: Path, *, name: str) -> None:
    """Upload one run's site and the page that lists all runs; what an earlier run left is removed."""
    for picture in docs.rglob("*.gif"):  # only how-to pages show them, and they are most of the size
        picture.unlink()
    prefix = f"{DATA_DOCS}/{name}"
    if not (docs / "index.html").is_file():
        return
    new = {f"{prefix}/{path.relative_to(docs)}" for path in docs.rglob("*") if path.is_file()}
    work.upload(docs, prefix, last="index.html")
    keys = work.list(f"{DATA_DOCS}/")
    for key in keys:
        if key.startswith(f"{prefix}/") and key not in new:
            work.delete(key)
    runs = sorted(
        {key.split("/")[1] for key in keys if key.count("/") == 2 and key.endswith("/index.html")}, reverse=True
    )
    items = "\n".join(f'<li><a href="{run}/index.html">{run}</a></li>' for run in runs)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>storyrec: data docs</title>'
        f"<h1>Log validation</h1>\n<ul>\n{items}\n</ul></html>\n"
    )
    work.write(f"{DATA_DOCS}/index.html", page.encode())
