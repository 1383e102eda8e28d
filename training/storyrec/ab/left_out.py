"""What of a test's logs cannot count, and how much of it there is.

The tables are those that `storyrec.ab.logs` makes.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from storyrec.ab.contract import ARMS
from storyrec.errors import DataError

MAX_SHARE_IN_BOTH = 0.01
"""Of the users in both arms: above, the assignment is broken."""


@dataclass(frozen=True)
class Counted:
    """Rows or users of one kind, of how many, and what became of them."""

    what: str
    count: int
    of: int


def check_arms(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[list[Counted], float]:
    """Count what of the exposures is left out; also, the share of the users in both arms.

    Raises:
        DataError: an arm is unknown or missing, or more than MAX_SHARE_IN_BOTH of the users are in both.
    """
    found = [str(row[0]) for row in connection.execute(
        "SELECT DISTINCT arm FROM exposure_rows WHERE arm IS NOT NULL AND user_id >= 1 AND us IS NOT NULL ORDER BY arm"
    ).fetchall()]  # fmt: skip
    if found != sorted(ARMS):
        unknown = [arm for arm in found if arm not in ARMS]
        said = f"unknown arm: {', '.join(map(repr, unknown))}" if unknown else f"the only arm is {', '.join(found)}"
        raise DataError(
            said if found else "no row of the exposures has a user, an arm and a time",
            expected=f"both of {', '.join(ARMS)}, and no other",
            where=str(path),
            remedy="name the arms so; of several treatments, analyze each with the control by itself",
        )
    num_rows, num_bad = (
        number(connection, f"SELECT count(*) FROM exposure_rows {where}")
        for where in ("", "WHERE coalesce(user_id, 0) < 1 OR arm IS NULL OR us IS NULL")
    )
    num_users = number(connection, "SELECT count(*) FROM met")
    in_both = number(connection, "SELECT count(*) FROM met WHERE in_both")
    if in_both > MAX_SHARE_IN_BOTH * num_users:
        raise DataError(
            f"{in_both:,} of {num_users:,} users are in both arms",
            expected=f"at most {MAX_SHARE_IN_BOTH:.0%}: each user in one arm for the whole test",
            where=str(path),
            remedy="mend the assignment and run the test again: what these users did cannot be told apart",
        )
    return [
        Counted("exposures without a user, an arm or a time: left out", num_bad, num_rows),
        Counted("users in both arms: left out with their outcomes", in_both, num_users),
    ], in_both / num_users


def count_rows(connection: duckdb.DuckDBPyConnection, name: str, *, label: str, late: str, when: str) -> list[Counted]:
    """Count what of the outcomes, or of those before the test, is left out.

    Args:
        connection: with the tables `users`, `met`, `<name>` and `<name>_rows`.
        name: of the tables.
        label: of the rows, for people.
        late: what to say of rows at the wrong time.
        when: which these are, of an outcome `o` of a user `u`.
    """
    bad, bad_dwell, num_rows = (
        number(connection, f"SELECT count(*) FROM {name}_rows {where}")
        for where in (
            "WHERE coalesce(user_id, 0) < 1 OR coalesce(story_id, 0) < 1 OR us IS NULL OR clicked IS NULL",
            "WHERE user_id >= 1 AND story_id >= 1 AND us IS NOT NULL AND clicked IS NOT NULL AND NOT is_dwell",
            "",
        )
    )
    repeated = number(connection, f"SELECT sum(num_rows - 1) FROM {name}")
    both, strangers, early = (
        number(connection, f"SELECT count(*) FROM {name} o LEFT JOIN users u USING (user_id) WHERE {where}")
        for where in (
            "o.user_id IN (SELECT user_id FROM met WHERE in_both)",
            "o.user_id NOT IN (SELECT user_id FROM met)",
            f"u.user_id IS NOT NULL AND {when}",
        )
    )
    measured = f"(SELECT count(dwell) FROM {name}) > 0"
    silent = number(connection, f"SELECT count(*) FROM {name} WHERE clicked AND dwell IS NULL AND {measured}")
    return [
        Counted(f"{label} without a user, a story, a time or whether clicked: left out", bad, num_rows),
        Counted(f"{label} with a dwell time below zero or not finite: left out", bad_dwell, num_rows),
        Counted(f"{label} that repeat a user, story and time: counted once", repeated, num_rows),
        Counted(f"{label} of users who never met the test: left out", strangers, num_rows),
        Counted(f"{label} of users in both arms: left out", both, num_rows),
        Counted(f"{label} {late}: left out", early, num_rows),
        Counted(f"{label} clicked without a dwell time: counted as 0 s", silent, num_rows),
    ]


def number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The single number that a query gives."""
    return int(connection.execute(query).fetchall()[0][0])
