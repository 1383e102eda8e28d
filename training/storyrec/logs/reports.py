"""What validating a day found: `reports/dt=D.json`, written last, so a report means that the day is done."""

from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storyrec.errors import DataError
from storyrec.logs.contract import Outcome
from storyrec.logs.judge import JudgedTable, Judgement, click_rates, counts_by_day, day_resolution, describe
from storyrec.logs.rules import RULES, DayFacts, DayRule, Level, RowRule
from storyrec.storage import Storage

RuleStatus = Literal["passed", "violated", "broken", "not judged"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RuleReport(_Part):
    """One rule on one day: `count` rows broke it (1 for a day rule); `note` is a measured value or what is broken."""

    level: Level
    status: RuleStatus
    count: int = 0
    note: str = ""


class TableReport(_Part):
    """One table on one day; `quarantined` counts rows by the first rule they broke."""

    rows: int
    valid: int
    quarantined: dict[str, int]
    rules: dict[str, RuleReport]
    click_rate: float | None = None
    notes: tuple[str, ...] = ()


class ValidationReport(_Part):
    """One day. `day_resolution`: every event is at midnight, so times within the day mean nothing."""

    day: date
    status: Literal["valid", "stopped"]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: dict[str, TableReport]
    day_resolution: bool
    caught_up: bool
    data_docs: str = ""


def report_key(day: date) -> str:
    """Where a day's report is."""
    return f"reports/dt={day}.json"


def reported_days(work: Storage) -> set[date]:
    """The days that have a report, valid or stopped."""
    keys = (key.removeprefix("reports/dt=").removesuffix(".json") for key in work.list("reports/dt="))
    return {date.fromisoformat(key) for key in keys}


def read_report(work: Storage, day: date) -> ValidationReport | None:
    """A day's report, or None where the day was not validated.

    Raises:
        DataError: the file is no report.
    """
    found = work.read_versioned(report_key(day))
    if found is None:
        return None
    try:
        return ValidationReport.model_validate_json(found[0])
    except ValidationError as error:
        raise DataError(
            f"this validation report cannot be read: {error.errors()[0]['msg']}",
            where=f"{work.url}/{report_key(day)}",
            remedy="remove the file and validate the day again",
        ) from error


def write_report(work: Storage, report: ValidationReport) -> None:
    """Write a day's report, replacing an earlier one."""
    work.write(report_key(report.day), report.model_dump_json(indent=1).encode())


def make_reports(
    judgement: Judgement, outcomes: Mapping[str, Mapping[str, Outcome]], *, caught_up: bool, data_docs: str
) -> list[ValidationReport]:
    """A report for each judged day.

    A broken check stops the day: nobody knows what it would have said.

    Args:
        judgement: what the row masks and day rules say.
        outcomes: what Great Expectations says, by table and rule.
        caught_up: whether the days were validated as a batch of the past.
        data_docs: the key below which the data docs are.
    """
    tables: dict[date, dict[str, TableReport]] = {day: {} for day in judgement.days}
    for table, judged in judgement.tables.items():
        for day, report in _table_reports(table, judged, judgement, outcomes.get(table, {})).items():
            tables[day][table] = report
    flags = day_resolution(judgement.tables, days=judgement.days)
    reports = []
    for day, at_midnight in zip(judgement.days, flags, strict=True):
        reasons = [*judgement.reasons.get(day, ()), *_broken_checks(tables[day], judgement, day)]
        reports.append(
            ValidationReport(
                day=day,
                status="stopped" if reasons else "valid",
                reasons=tuple(reasons),
                warnings=tuple(_warnings(tables[day])),
                tables=tables[day],
                day_resolution=at_midnight,
                caught_up=caught_up,
                data_docs=data_docs,
            )
        )
    return reports


def _table_reports(
    table: str, judged: JudgedTable, judgement: Judgement, outcomes: Mapping[str, Outcome]
) -> dict[date, TableReport]:
    broken, first = counts_by_day(judged, days=judgement.days, table=table)
    rates = click_rates(judged, days=judgement.days)
    reports = {}
    for index, day in enumerate(judgement.days):
        facts = judgement.facts.get((table, day))
        if day not in judged.present and facts is None:
            continue
        rules = {}
        for rule in RULES[table]:
            outcome = outcomes.get(rule.name, Outcome("passed"))
            if day in judged.read.problems:
                rules[rule.name] = _unreadable(rule, judged, day)
            elif outcome.status == "broken":
                rules[rule.name] = RuleReport(level=rule.level, status="broken", note=outcome.note)
            elif isinstance(rule, DayRule):
                rules[rule.name] = _day_rule(rule, facts)
            else:
                count = int(broken[rule.name][index])
                rules[rule.name] = _row_rule(rule.level, count)
        quarantined = {name: int(counts[index]) for name, counts in first.items() if counts[index]}
        part = judged.day_slice(day)
        reports[day] = TableReport(
            rows=part.stop - part.start,
            valid=part.stop - part.start - sum(quarantined.values()),
            quarantined=quarantined,
            rules=rules,
            click_rate=rates[index],
            notes=_notes(judged, day),
        )
    return reports


@lru_cache
def _row_rule(level: Level, count: int) -> RuleReport:
    return RuleReport(level=level, status="violated" if count else "passed", count=count)


def _day_rule(rule: DayRule, facts: DayFacts | None) -> RuleReport:
    holds = rule.holds(facts) if facts is not None else None
    status: RuleStatus = "not judged" if holds is None else "passed" if holds else "violated"
    note = describe(rule, facts) if facts is not None else ""
    return RuleReport(level=rule.level, status=status, count=int(holds is False), note=note)


def _unreadable(rule: RowRule | DayRule, judged: JudgedTable, day: date) -> RuleReport:
    """A rule of a table that could not be read: broken where its column, or the whole file, is to blame."""
    columns = judged.read.broken_columns.get(day)
    blamed = columns is None or bool(set(rule.columns) & set(columns))
    note = judged.read.problems[day].found if blamed else ""
    return RuleReport(level=rule.level, status="broken" if blamed else "not judged", note=note)


def _broken_checks(tables: Mapping[str, TableReport], judgement: Judgement, day: date) -> list[str]:
    return [
        f"{table}: the check {name} is broken: {rule.note}"
        for table, report in tables.items()
        for name, rule in report.rules.items()
        if rule.status == "broken" and day not in judgement.tables[table].read.problems
    ]


def _warnings(tables: Mapping[str, TableReport]) -> list[str]:
    return [
        f"{table}: {name}: {rule.note}"
        for table, report in tables.items()
        for name, rule in report.rules.items()
        if rule.level == "warn" and rule.status == "violated"
    ]


def _notes(judged: JudgedTable, day: date) -> tuple[str, ...]:
    notes = []
    if day not in judged.present:
        notes.append("no partition")
    if judged.read.dropped:
        notes.append(f"columns beyond the contract are dropped: {', '.join(judged.read.dropped)}")
    return tuple(notes)
