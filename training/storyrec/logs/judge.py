"""Judging the rows of one day or of thousands by the rules, without reading or writing anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storyrec.logs.known import CATALOG_IDS, KnownIds
from storyrec.logs.partitions import Partitions, day_number
from storyrec.logs.rows import DAY_US, Mask, Rows
from storyrec.logs.rules import RULES, DayFacts, DayRule
from storyrec.schema import EVENT_TIME, TABLES

Int64s = NDArray[np.int64]
Pairs = tuple[Int64s, Int64s]


@dataclass(frozen=True)
class JudgedTable:
    """One table's rows with their verdicts.

    `first_B` is the position of the first broken quarantine rule, -1 for clean rows; `present` the days
    that have a partition, readable or not.
    """

    read: Partitions
    rows: Rows
    masks: Mapping[str, Mask]
    first_B: NDArray[np.int8]
    present: frozenset[date]

    def day_slice(self, day: date) -> slice:
        """The rows of a day."""
        number = day_number(day)
        start, stop = np.searchsorted(self.rows.day_B, [number, number + 1])
        return slice(int(start), int(stop))


@dataclass(frozen=True)
class Judgement:
    """All tables of a run of days; `reasons` why a day is stopped, `facts` what its day rules measured."""

    days: tuple[date, ...]
    tables: Mapping[str, JudgedTable]
    facts: Mapping[tuple[str, date], DayFacts]
    reasons: Mapping[date, Sequence[str]] = field(default_factory=dict)


Measure = Callable[[str, date, int, float | None, float | None], DayFacts]
"""(table, day, rows, click rate, quarantined share) -> what day rules look at, bounds included."""


def judge(
    read: Mapping[str, Partitions],
    *,
    days: Sequence[date],
    present: Mapping[str, frozenset[date]],
    known: Mapping[str, Pairs],
    measure: Measure,
    judge_absent: bool,
) -> Judgement:
    """Judge every row and every day.

    A day that is stopped adds nothing to the catalog of the days after it, and rows that therefore lose
    their story may stop those too: judging is repeated until no further day is stopped.

    Args:
        read: each table's rows.
        days: all days that are judged, ascending.
        present: the days on which each table has a partition.
        known: per catalog table the (id, day) pairs of validated partitions of *other* days.
        measure: makes the facts of a table's day.
        judge_absent: whether day rules are judged for a table that has no partition on the day.
    """
    reasons: dict[date, list[str]] = {}
    for table, part in read.items():
        for day, problem in part.problems.items():
            reasons.setdefault(day, []).append(f"{table}: {problem.found}; where: {problem.where}")
    problems = frozenset(reasons)
    masks: dict[str, dict[str, Mask]] = {}
    while True:
        catalog: dict[str, KnownIds] = {}
        tables: dict[str, JudgedTable] = {}
        for table in TABLES:
            rows = Rows(read[table].table, read[table].day_B, catalog)
            masks[table] = RULES[table].masks(rows, reuse=masks.get(table))
            first_B = RULES[table].first_broken(masks[table], num_rows=rows.table.num_rows)
            tables[table] = JudgedTable(read[table], rows, masks[table], first_B, present[table])
            if table in CATALOG_IDS:
                catalog[table] = _extend(known[table], tables[table], table=table, stopped=reasons)
        facts = {}
        newly_stopped = False
        for table, judged in tables.items():
            for day, (num_rows, click_rate, share) in _measures(judged, days=days).items():
                if day in judged.read.problems or (day not in judged.present and not judge_absent):
                    continue
                facts[table, day] = measure(table, day, num_rows, click_rate, share)
                found = _stops(table, facts[table, day])
                if found and day not in problems:
                    newly_stopped |= day not in reasons
                    known_reasons = reasons.setdefault(day, [])
                    known_reasons[:] = [r for r in known_reasons if not r.startswith(f"{table}: ")] + found
        if not newly_stopped:
            return Judgement(tuple(days), tables, facts, reasons)


def describe(rule: DayRule, facts: DayFacts) -> str:
    """What a day rule measured and what is allowed, for people."""
    value, bounds = rule.measure(facts), rule.bounds(facts)
    if value is None or bounds is None:
        return "not enough is known to judge it"
    low, high = (None if bound is None else _number(bound) for bound in bounds)
    allowed = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
    return f"{_number(value)}, allowed: {allowed}"


def click_rates(judged: JudgedTable, *, days: Sequence[date]) -> list[float | None]:
    """Clicked share of each day's impressions whose label is known; None without any."""
    if "clicked" not in judged.rows.table.column_names:
        return [None] * len(days)
    index_B = _day_index(judged, days)
    clicked_B = pc.fill_null(judged.rows.table["clicked"], False).to_numpy()
    known = np.bincount(index_B[~judged.rows.null("clicked")], minlength=len(days))
    clicks = np.bincount(index_B[clicked_B], minlength=len(days))
    return [int(c) / int(n) if n else None for c, n in zip(clicks, known, strict=True)]


def day_resolution(tables: Mapping[str, JudgedTable], *, days: Sequence[date]) -> list[bool]:
    """Whether all events of each day are at midnight."""
    events, elsewhere = np.zeros(len(days), np.int64), np.zeros(len(days), np.int64)
    for table in ("impressions", "product_clicks"):
        us_B = pc.fill_null(tables[table].rows.table[EVENT_TIME[table]].cast(pa.int64()), 0).to_numpy()
        index_B = _day_index(tables[table], days)
        events += np.bincount(index_B, minlength=len(days))
        elsewhere += np.bincount(index_B[us_B % DAY_US != 0], minlength=len(days))
    return [bool(flag) for flag in (events > 0) & (elsewhere == 0)]


def counts_by_day(
    judged: JudgedTable, *, days: Sequence[date], table: str
) -> tuple[dict[str, Int64s], dict[str, Int64s]]:
    """Per row rule and day: rows that break it, and rows quarantined by it (their first broken rule)."""
    index_B = _day_index(judged, days)
    broken = {name: np.bincount(index_B[~mask], minlength=len(days)) for name, mask in judged.masks.items()}
    first = {
        rule.name: np.bincount(index_B[judged.first_B == position], minlength=len(days))
        for position, rule in enumerate(RULES[table].row)
    }
    return broken, first


def _stops(table: str, facts: DayFacts) -> list[str]:
    return [
        f"{table}: {rule.name}: {rule.says}: {describe(rule, facts)}"
        for rule in RULES[table].day
        if rule.level == "stop" and rule.holds(facts) is False
    ]


def _measures(judged: JudgedTable, *, days: Sequence[date]) -> dict[date, tuple[int, float | None, float | None]]:
    index_B = _day_index(judged, days)
    num_rows = np.bincount(index_B, minlength=len(days))
    num_bad = np.bincount(index_B[judged.first_B >= 0], minlength=len(days))
    rates = click_rates(judged, days=days)
    return {
        day: (int(n), rate, int(bad) / int(n) if n else None)
        for day, n, bad, rate in zip(days, num_rows, num_bad, rates, strict=True)
    }


def _extend(known: Pairs, judged: JudgedTable, *, table: str, stopped: Mapping[date, object]) -> KnownIds:
    good = judged.first_B < 0
    ids_B, day_B = judged.rows.ids(CATALOG_IDS[table])[good], judged.rows.day_B[good]
    only_on = {day_number(day): ids_B[day_B == day_number(day)] for day in stopped}
    keep = ~np.isin(day_B, list(only_on))
    ids_M, day_M = np.concatenate([known[0], ids_B[keep]]), np.concatenate([known[1], day_B[keep]])
    return KnownIds.from_pairs(ids_M, day_M, only_on=only_on)


def _day_index(judged: JudgedTable, days: Sequence[date]) -> Int64s:
    return np.searchsorted([day_number(day) for day in days], judged.rows.day_B)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
