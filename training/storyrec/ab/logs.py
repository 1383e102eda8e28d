"""The logs of an online test as sums per user and day, and what was left out of them.

Shapes: U = users, D = days of the test, K = SHOWN, CLICKED, DWELL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np

from storyrec.ab.contract import EXPOSURES, OUTCOMES, TREATMENT
from storyrec.ab.effects import Booleans, Floats, Integers
from storyrec.ab.files import source_of
from storyrec.ab.left_out import Counted, check_arms, count_rows, number
from storyrec.analysis.database import open_scratch, read_columns
from storyrec.errors import DataError
from storyrec.features.sequences import DAY_US
from storyrec.logs.partitions import EPOCH, day_number

MAX_DAYS = 366
EARLIER = "outcomes before the test"

_EXPOSURES = """
CREATE TABLE exposure_rows AS
SELECT user_id::BIGINT AS user_id, arm::VARCHAR AS arm, epoch_us(exposed_at::TIMESTAMPTZ) AS us FROM {source};

CREATE TABLE met AS
SELECT user_id, min(us) AS us, max(arm) = '{treatment}' AS is_treatment, min(arm) <> max(arm) AS in_both
FROM exposure_rows WHERE user_id >= 1 AND arm IS NOT NULL AND us IS NOT NULL GROUP BY user_id;

CREATE TABLE users AS
SELECT (row_number() OVER (ORDER BY user_id) - 1)::BIGINT AS user_row, user_id, us, is_treatment
FROM met WHERE NOT in_both;
"""
_OUTCOMES = """
CREATE VIEW {name}_rows AS
SELECT user_id::BIGINT AS user_id, story_id::BIGINT AS story_id, epoch_us(shown_at::TIMESTAMPTZ) AS us, clicked,
       {dwell} AS dwell, {dwell} IS NULL OR ({dwell} >= 0 AND isfinite({dwell})) AS is_dwell FROM {source};

CREATE TABLE {name} AS
SELECT user_id, story_id, us, max(clicked) AS clicked, max(dwell) AS dwell, count(*) AS num_rows FROM {name}_rows
WHERE user_id >= 1 AND story_id >= 1 AND us IS NOT NULL AND clicked IS NOT NULL AND is_dwell
GROUP BY user_id, story_id, us;
"""
_SUMS = "count(*)::DOUBLE AS shown, count_if(clicked)::DOUBLE AS clicked, coalesce(sum(dwell), 0)::DOUBLE AS dwell"


@dataclass(frozen=True)
class Observed:
    """What a test saw of the users of one arm only, in order of their ids.

    Attributes:
        days: of the test, UTC, the first exposure's to the last row's, [D].
        is_treatment_U: each user's arm, [U].
        entry_U: the day, as a place in `days`, on which each user met the test, [U].
        sums_UDK: stories shown, stories clicked and seconds spent by each user on each day, [U, D, K]; a user without
            outcomes has zeros.
        before_UK: the same sums before the test; None: no such log was given.
        has_dwell: whether any dwell time was measured.
        counts: what was found and left out.
        share_in_both: users in both arms, of all.
    """

    days: tuple[date, ...]
    is_treatment_U: Booleans
    entry_U: Integers
    sums_UDK: Floats
    before_UK: Floats | None
    has_dwell: bool
    counts: tuple[Counted, ...]
    share_in_both: float


def read_test(exposures: Path, outcomes: Path, *, before: Path | None = None) -> Observed:
    """Read the logs of a test.

    Left out and counted: rows without an id, time or arm; repeated impressions; users in both arms; outcomes of users
    who never met the test or did so later; in `before`, rows from the first exposure on.

    Args:
        exposures, outcomes: Parquet files or folders, `EXPOSURES` and `OUTCOMES`.
        before: outcomes from before the test.

    Raises:
        SchemaMismatch: a column is missing or has another type, such as times without a zone.
        DataError: a log is missing or unreadable, has no usable row, an unknown or a single arm; more than
            MAX_SHARE_IN_BOTH of the users are in both arms; or the test is longer than MAX_DAYS.
    """
    with _database() as connection:
        source = source_of(exposures, EXPOSURES, name="exposures")
        connection.execute(_EXPOSURES.format(source=source, treatment=TREATMENT))
        counts, share_in_both = check_arms(connection, exposures)
        has_dwell = _load(connection, "outcomes", outcomes, label="outcomes")
        counts += count_rows(
            connection, "outcomes", label="outcomes", late="before their user's exposure", when="o.us < u.us"
        )
        days, sums_UDK = _sum_days(connection, outcomes)
        before_UK = None
        if before is not None:
            _load(connection, "earlier", before, label=EARLIER)
            start = "(SELECT min(us) FROM users)"
            counts += count_rows(
                connection, "earlier", label=EARLIER, late="from the first exposure on", when=f"o.us >= {start}"
            )
            before_UK = _sum_before(connection, start=start, num_users=len(sums_UDK))
        users = read_columns(connection, "SELECT us, is_treatment FROM users ORDER BY user_row")
    return Observed(
        days=days,
        is_treatment_U=users["is_treatment"].astype(bool),
        entry_U=users["us"] // DAY_US - day_number(days[0]),
        sums_UDK=sums_UDK,
        before_UK=before_UK,
        has_dwell=has_dwell,
        counts=tuple(counts),
        share_in_both=share_in_both,
    )


def read_usage(outcomes: Path) -> Observed:
    """Read outcomes alone, as if every user met a test without arms at the first impression.

    Raises:
        SchemaMismatch, DataError: as in `read_test`.
    """
    with _database() as connection:
        has_dwell = _load(connection, "outcomes", outcomes, label="outcomes")
        connection.execute(
            "CREATE TABLE users AS SELECT (row_number() OVER (ORDER BY user_id) - 1)::BIGINT AS user_row, user_id, "
            "min(us) AS us, false AS is_treatment FROM outcomes GROUP BY user_id"
        )
        days, sums_UDK = _sum_days(connection, outcomes)
        first_U = read_columns(connection, "SELECT us FROM users ORDER BY user_row")["us"]
    return Observed(
        days=days,
        is_treatment_U=np.zeros(len(first_U), bool),
        entry_U=first_U // DAY_US - day_number(days[0]),
        sums_UDK=sums_UDK,
        before_UK=None,
        has_dwell=has_dwell,
        counts=(),
        share_in_both=0.0,
    )


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    try:
        with open_scratch() as connection:
            yield connection
    except (duckdb.ConversionException, duckdb.InvalidInputException) as error:
        raise DataError(
            f"a log cannot be read: {str(error).splitlines()[0]}",
            expected="whole Parquet files with ids below 2^63",
            where="the logs of the test",
            remedy="write them again",
        ) from error


def _load(connection: duckdb.DuckDBPyConnection, name: str, path: Path, *, label: str) -> bool:
    """Make a table of outcomes; returns whether it has any dwell time."""
    source = source_of(path, OUTCOMES, name=label)
    columns = {str(row[0]) for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    dwell = "dwell_seconds::DOUBLE" if "dwell_seconds" in columns else "NULL::DOUBLE"
    connection.execute(_OUTCOMES.format(name=name, source=source, dwell=dwell))
    if not number(connection, f"SELECT count(*) FROM {name}"):
        raise DataError(
            f"no row of the {label} can count: each lacks a user, a story, a time or whether it was clicked, or has "
            "an id below 1 or a dwell time below zero or not finite",
            expected="at least one row without these faults",
            where=str(path),
            remedy="write the log again from its source",
        )
    return bool(number(connection, f"SELECT count(dwell) FROM {name}"))


def _sum_days(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[tuple[date, ...], Floats]:
    found = read_columns(
        connection,
        f"SELECT user_row, o.us // {DAY_US} AS day, {_SUMS} FROM outcomes o JOIN users u USING (user_id) "
        "WHERE o.us >= u.us GROUP BY ALL",
    )
    if not len(found["day"]):
        raise DataError(
            "no outcome is of a user who had met the test",
            expected="outcomes with the users of the exposures, from their first exposure on",
            where=str(path),
            remedy="name exposures and outcomes of the same test",
        )
    first, last = (number(connection, f"SELECT {side}(us) // {DAY_US} FROM users") for side in ("min", "max"))
    num_days = max(last, int(found["day"].max())) - first + 1
    if num_days > MAX_DAYS:
        raise DataError(
            f"the test lasts {num_days:,} days",
            expected=f"at most {MAX_DAYS}",
            where=str(path),
            remedy="look for wrong times in exposures and outcomes, or analyze a part",
        )
    num_users = number(connection, "SELECT count(*) FROM users")
    sums_UDK = np.zeros((num_users, num_days, 3))
    sums_UDK[found["user_row"], found["day"] - first] = np.stack(
        [found[name] for name in ("shown", "clicked", "dwell")], axis=1
    )
    return tuple(EPOCH + timedelta(days=int(first) + number) for number in range(num_days)), sums_UDK


def _sum_before(connection: duckdb.DuckDBPyConnection, *, start: str, num_users: int) -> Floats:
    found = read_columns(
        connection,
        f"SELECT user_row, {_SUMS} FROM earlier o JOIN users u USING (user_id) WHERE o.us < {start} GROUP BY ALL",
    )
    sums_UK = np.zeros((num_users, 3))
    sums_UK[found["user_row"]] = np.stack([found[name] for name in ("shown", "clicked", "dwell")], axis=1)
    return sums_UK
