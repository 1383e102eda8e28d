"""The log rules: one declaration per table makes both the row mask and the Great Expectations suite.

A row rule's mask is True where the row holds. A rule judges only what it is about: a null id breaks
the rule that wants it present and no other. A day rule measures a whole day and has bounds.

Levels: *quarantine* sets the row aside, *stop* stops the day, *warn* is only reported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storyrec.logs.known import KnownIds
from storyrec.logs.rows import HOUR_US, Mask, Rows
from storyrec.schema import COVER_WIDTH, SOURCES

Level = Literal["quarantine", "stop", "warn"]
Bounds = tuple[float | None, float | None]

NORM_TOLERANCE = 2e-3  # float16 rounds each number by at most 2**-11 of itself
MAX_EVENTS_AN_HOUR = 3_600  # nobody does more than one thing a second for an hour
NULL = np.iinfo(np.int64).min
EMPTY = KnownIds(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Expectation:
    """What Great Expectations needs to judge the same rows.

    Attributes:
        kind: the snake_case name of a built-in expectation.
        column: the column it looks at; "" for the table as a whole.
        arguments: its other arguments.
        helper: makes the column where the table has none that the expectation could judge.
    """

    kind: str
    column: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    helper: Callable[[Rows], NDArray[Any]] | None = None


@dataclass(frozen=True)
class RowRule:
    """A rule that each row holds or breaks.

    Attributes:
        name: how reports, docs and the quarantine call it.
        says: the rule in a sentence.
        columns: what it needs to be judged.
        mask: True where the row holds, [B] bool.
        expectation: the same for Great Expectations.
        catalog: whether the mask depends on the catalog so far.
    """

    name: str
    says: str
    columns: tuple[str, ...]
    mask: Callable[[Rows], Mask]
    expectation: Expectation
    catalog: bool = False
    level: Level = "quarantine"


@dataclass(frozen=True)
class DayFacts:
    """What day rules measure, and their bounds; None = unknown, so not judged."""

    num_rows: int
    click_rate: float | None = None
    quarantined_share: float | None = None
    row_count_bounds: Bounds | None = None
    click_rate_bounds: Bounds | None = None
    max_quarantined_share: float = 1.0


@dataclass(frozen=True)
class DayRule:
    """A rule about a whole day of a table.

    Attributes:
        measure: the value that is judged, or None.
        bounds: the lowest and highest allowed value (None: open), or None when the rule cannot be judged.
        expectation: the expectation that measures the same; the bounds are its min_value and max_value.
    """

    name: str
    says: str
    columns: tuple[str, ...]
    measure: Callable[[DayFacts], float | None]
    bounds: Callable[[DayFacts], Bounds | None]
    expectation: Expectation
    level: Level = "stop"

    def holds(self, facts: DayFacts) -> bool | None:
        """Whether the day keeps the rule; None where it cannot be judged."""
        value, bounds = self.measure(facts), self.bounds(facts)
        if value is None or bounds is None:
            return None
        low, high = bounds
        return (low is None or value >= low) and (high is None or value <= high)


@dataclass(frozen=True)
class TableRules:
    """All rules of one table, in the order in which a row's first broken rule is named."""

    row: tuple[RowRule, ...]
    day: tuple[DayRule, ...]

    def __iter__(self) -> Iterator[RowRule | DayRule]:
        return iter((*self.row, *self.day))

    def masks(self, rows: Rows, *, reuse: Mapping[str, Mask] | None = None) -> dict[str, Mask]:
        """Every row rule's mask; `reuse` are earlier masks of the same rows, kept where the catalog plays no part."""
        reuse = reuse or {}
        return {r.name: reuse[r.name] if r.name in reuse and not r.catalog else r.mask(rows) for r in self.row}

    def first_broken(self, masks: Mapping[str, Mask], *, num_rows: int) -> NDArray[np.int8]:
        """The position of the first broken quarantine rule of each row, -1 for clean rows. -> [B] int8."""
        first_B = np.full(num_rows, -1, np.int8)
        for position in reversed(range(len(self.row))):
            if self.row[position].level == "quarantine":
                first_B[~masks[self.row[position].name]] = position
        return first_B

    def names(self, first_M: NDArray[np.int8]) -> pa.Array:
        """The rules at these positions."""
        return pa.array([rule.name for rule in self.row], pa.string()).take(pa.array(first_M))


def _present(column: str) -> RowRule:
    return RowRule(
        f"{column}_present",
        f"{column} is not null",
        (column,),
        lambda rows: ~rows.null(column),
        Expectation("expect_column_values_to_not_be_null", column),
    )


def _positive(column: str) -> RowRule:
    return RowRule(
        f"{column}_positive",
        f"{column} is 1 or more",
        (column,),
        lambda rows: rows.null(column) | (rows.ids(column) >= 1),
        Expectation("expect_column_values_to_be_between", column, {"min_value": 1}),
    )


def _key(column: str) -> tuple[RowRule, ...]:
    return _present(column), _positive(column)


def _inside_day(column: str) -> RowRule:
    return RowRule(
        f"{column}_inside_day",
        f"{column} is inside the partition's day (UTC)",
        (column,),
        lambda rows: np.isnan(rows.days_off(column)) | (rows.days_off(column) == 0),
        Expectation(
            "expect_column_values_to_be_between",
            f"{column}: days off",
            {"min_value": 0, "max_value": 0},
            lambda rows: rows.days_off(column),
        ),
    )


def _not_after_day(column: str) -> RowRule:
    return RowRule(
        f"{column}_not_after_day",
        f"{column} is not after the partition's day (UTC)",
        (column,),
        lambda rows: ~(rows.days_off(column) > 0),
        Expectation(
            "expect_column_values_to_be_between",
            f"{column}: days off",
            {"max_value": 0},
            lambda rows: rows.days_off(column),
        ),
    )


def _flagged(
    name: str, says: str, columns: tuple[str, ...], mask: Callable[[Rows], Mask], *, catalog: bool = False
) -> RowRule:
    """A rule that no built-in expectation can say: Great Expectations sees its mask as a column of flags."""
    expectation = Expectation("expect_column_values_to_be_in_set", f"rule: {name}", {"value_set": [True]}, mask)
    return RowRule(name, says, columns, mask, expectation, catalog=catalog)


def _first_of(name: str, says: str, columns: tuple[str, ...], *, tie_breaker: tuple[str, str] | None = None) -> RowRule:
    def mask(rows: Rows) -> Mask:
        without_key = np.zeros(rows.table.num_rows, bool)
        compared = [rows.day_B]
        for column in columns:
            compared.append(_codes(rows.table[column]))
            if tie_breaker is None or column != tie_breaker[0]:
                without_key |= rows.null(column)
        if tie_breaker is not None:
            nullable, other = tie_breaker
            compared.append(np.where(rows.null(nullable), _codes(rows.table[other]), 0))
        return without_key | ~_repeated(compared)

    return _flagged(name, says, columns + (tie_breaker[1:] if tie_breaker else ()), mask)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each value, the smallest one for null. -> [B] int64."""
    if pa.types.is_string(column.type):
        column = pa.chunked_array([part.indices for part in column.dictionary_encode().chunks], pa.int32())
    return pc.fill_null(column.cast(pa.int64()), NULL).to_numpy()


def _repeated(columns: Sequence[NDArray[np.int64]]) -> Mask:
    """Where a row is like one before it. Only rows whose hash is not their own are compared. -> [B] bool."""
    hash_B = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hash_B = hash_B * np.uint64(31) + pd.util.hash_array(column)
    sorted_B = np.sort(hash_B)
    shared = np.unique(sorted_B[1:][sorted_B[1:] == sorted_B[:-1]])
    some = np.flatnonzero(pd.Series(hash_B).isin(shared))
    repeated_B = np.zeros(len(hash_B), bool)
    repeated_B[some] = pd.DataFrame({i: column[some] for i, column in enumerate(columns)}).duplicated()
    return repeated_B


def _in_catalog(column: str, catalog: str) -> RowRule:
    def mask(rows: Rows) -> Mask:
        ids_B = rows.ids(column)
        return (ids_B < 1) | rows.known.get(catalog, EMPTY).has(ids_B, day_B=rows.day_B)

    says = f"{column} is in the catalog of {catalog} so far, this day included"
    return _flagged(f"{column}_known", says, (column,), mask, catalog=True)


def _mounted_known(rows: Rows) -> Mask:
    lists = rows.table["mounted_product_ids"]
    holds_B = np.ones(rows.table.num_rows, bool)
    owner_M = np.repeat(np.arange(len(holds_B)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    ids_M = pc.fill_null(pc.list_flatten(lists), 0).to_numpy()
    known_M = rows.known.get("products", EMPTY).has(ids_M, day_B=rows.day_B[owner_M])
    holds_B[owner_M[~known_M]] = False
    return holds_B


def _human_pace(time: str) -> RowRule:
    def mask(rows: Rows) -> Mask:
        holds_B = np.ones(rows.table.num_rows, bool)
        counts = pc.value_counts(rows.table["user_id"]).flatten()
        busy = counts[0].filter(pc.greater(counts[1], MAX_EVENTS_AN_HOUR)).drop_null()
        some = np.flatnonzero(pc.is_in(rows.table["user_id"], busy).to_numpy() & ~rows.null(time))
        events = rows.table.select(["user_id", time]).take(pa.array(some))
        hour = events[time].cast(pa.int64()).to_numpy() // HOUR_US
        compared = pd.DataFrame({"dt": rows.day_B[some], "user": events["user_id"].to_numpy(), "hour": hour})
        holds_B[some] = compared.groupby(["dt", "user", "hour"])["dt"].transform("size") <= MAX_EVENTS_AN_HOUR
        return holds_B

    says = f"a user has at most {MAX_EVENTS_AN_HOUR:,} events in an hour; more are a bot's"
    return _flagged("user_at_human_pace", says, ("user_id", time), mask)


def _title_not_blank(rows: Rows) -> Mask:
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(rows.table["title"]), ""), True).to_numpy()


_TITLE = (
    _present("title"),
    RowRule(
        "title_not_blank",
        "title has a character that is no white space",
        ("title",),
        _title_not_blank,
        Expectation("expect_column_values_to_match_regex", "title", {"regex": r"\S"}),
    ),
)
_COVER = (
    RowRule(
        "cover_width",
        f"cover is null or has {COVER_WIDTH} numbers",
        ("cover",),
        lambda rows: np.isnan(rows.cover_width) | (rows.cover_width == COVER_WIDTH),
        Expectation(
            "expect_column_values_to_be_between",
            "cover: width",
            {"min_value": COVER_WIDTH, "max_value": COVER_WIDTH},
            lambda rows: rows.cover_width,
        ),
    ),
    _flagged("cover_finite", "every number of a cover is finite", ("cover",), lambda rows: ~np.isinf(rows.cover_norm)),
    RowRule(
        "cover_unit_norm",
        "a cover has Euclidean norm 1",
        ("cover",),
        lambda rows: ~np.isfinite(rows.cover_norm) | (np.abs(rows.cover_norm - 1) <= NORM_TOLERANCE),
        Expectation(
            "expect_column_values_to_be_between",
            "cover: norm off",
            {"max_value": NORM_TOLERANCE},
            lambda rows: np.abs(np.where(np.isfinite(rows.cover_norm), rows.cover_norm, np.nan) - 1),
        ),
    ),
)


def _not_empty(level: Level) -> DayRule:
    return DayRule(
        "not_empty",
        "the day has rows",
        (),
        lambda facts: facts.num_rows,
        lambda facts: (1, None),
        Expectation("expect_table_row_count_to_be_between"),
        level,
    )


def _row_count(level: Level) -> DayRule:
    return DayRule(
        "row_count_in_band",
        "the number of rows is near that of the trailing days",
        (),
        lambda facts: facts.num_rows,
        lambda facts: facts.row_count_bounds,
        Expectation("expect_table_row_count_to_be_between"),
        level,
    )


QUARANTINED = "row is quarantined"

_SHARE = DayRule(
    "quarantined_share",
    "few enough rows are quarantined",
    (),
    lambda facts: facts.quarantined_share,
    lambda facts: (None, facts.max_quarantined_share),
    Expectation("expect_column_mean_to_be_between", QUARANTINED),
)
_CLICK_RATE = DayRule(
    "click_rate_in_band",
    "the click rate is near that of the trailing days",
    ("clicked",),
    lambda facts: facts.click_rate,
    lambda facts: facts.click_rate_bounds,
    Expectation("expect_column_mean_to_be_between", "clicked"),
)

RULES: Mapping[str, TableRules] = MappingProxyType(
    {
        "products": TableRules(
            row=(
                *_key("product_id"),
                *_TITLE,
                *_COVER,
                _present("published_at"),
                _not_after_day("published_at"),
                _first_of("product_once", "a product is there once a day; the first row counts", ("product_id",)),
            ),
            # a catalog partition is what changed: its first day is the whole catalog, and none is no fault
            day=(_SHARE, _row_count("warn")),
        ),
        "stories": TableRules(
            row=(
                *_key("story_id"),
                *_TITLE,
                *_COVER,
                _present("source"),
                RowRule(
                    "source_known",
                    f"source is one of {', '.join(SOURCES)}",
                    ("source",),
                    lambda rows: rows.null("source") | pc.is_in(rows.table["source"], pa.array(SOURCES)).to_numpy(),
                    Expectation("expect_column_values_to_be_in_set", "source", {"value_set": list(SOURCES)}),
                ),
                _present("published_at"),
                _not_after_day("published_at"),
                _first_of("story_once", "a story is there once a day; the first row counts", ("story_id",)),
                _flagged(
                    "mounted_products_known",
                    "every mounted product is in the catalog of products so far, this day included",
                    ("mounted_product_ids",),
                    _mounted_known,
                    catalog=True,
                ),
            ),
            day=(_SHARE, _row_count("warn")),
        ),
        "impressions": TableRules(
            row=(
                *_key("user_id"),
                *_key("story_id"),
                _present("shown_at"),
                _inside_day("shown_at"),
                _present("clicked"),
                _first_of(
                    "impression_once",
                    "a story is shown once per user and request (or time, without a request id); the first row counts",
                    ("user_id", "story_id", "request_id"),
                    tie_breaker=("request_id", "shown_at"),
                ),
                _in_catalog("story_id", "stories"),
                _human_pace("shown_at"),
            ),
            day=(_not_empty("stop"), _SHARE, _row_count("stop"), _CLICK_RATE),
        ),
        "product_clicks": TableRules(
            row=(
                *_key("user_id"),
                *_key("product_id"),
                _present("clicked_at"),
                _inside_day("clicked_at"),
                _first_of(
                    "click_once",
                    "a user clicks a product once per time; the first row counts",
                    ("user_id", "product_id", "clicked_at"),
                ),
                _in_catalog("product_id", "products"),
                _human_pace("clicked_at"),
            ),
            day=(_not_empty("warn"), _SHARE, _row_count("stop")),
        ),
    }
)
