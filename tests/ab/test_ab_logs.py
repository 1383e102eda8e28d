"""Reading the logs of a test: against plain Python, row by row, and what is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyrec.ab.contract import EXPOSURES, OUTCOMES
from storyrec.ab.logs import Observed, read_test
from storyrec.errors import DataError, SchemaMismatch
from storyrec.schema import IMPRESSIONS

START = datetime(2026, 3, 2, tzinfo=UTC)
NUM_DAYS = 4
Row = dict[str, Any]


def write(path: Path, rows: list[Row], schema: pa.Schema) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def random_test(seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Exposures, outcomes and rows before, with all that may be wrong with them."""
    rng = np.random.default_rng(seed)

    def time(first_day: int, num_days: int) -> datetime:
        return START + timedelta(days=first_day, minutes=int(rng.integers(num_days * 48)) * 30)

    def outcome(first_day: int, num_days: int) -> Row:
        clicked = bool(rng.random() < 0.4)
        return {
            "user_id": int(rng.integers(0, 240)) if rng.random() < 0.98 else None,
            "story_id": int(rng.integers(0, 6)),
            "shown_at": time(first_day, num_days),
            "clicked": clicked if rng.random() < 0.98 else None,
            "dwell_seconds": float(rng.choice([5.0, 20.5, -1.0, np.nan, np.inf], p=[0.4, 0.54, 0.02, 0.02, 0.02]))
            if clicked and rng.random() < 0.9
            else None,
        }

    exposures = [
        {
            "user_id": user if rng.random() < 0.98 else -1,
            "arm": "treatment" if user % 3 == 0 else "control",
            "exposed_at": time(0, NUM_DAYS) if rng.random() < 0.98 else None,
        }
        for user in rng.integers(1, 200, 400).tolist()
    ]
    exposures += [{"user_id": 3, "arm": arm, "exposed_at": START} for arm in ("control", "treatment")]
    outcomes, before = [outcome(0, NUM_DAYS) for _ in range(3_000)], [outcome(-3, 4) for _ in range(1_000)]
    return exposures, outcomes + outcomes[:20], before + before[:20]


class Oracle:
    """What reading must find, one row at a time."""

    def __init__(self, exposures: list[Row], outcomes: list[Row], before: list[Row]) -> None:
        arms: dict[int, set[str]] = {}
        self.met: dict[int, datetime] = {}
        self.bad_exposures = 0
        for row in exposures:
            if row["user_id"] < 1 or row["exposed_at"] is None:
                self.bad_exposures += 1
                continue
            user = row["user_id"]
            arms.setdefault(user, set()).add(row["arm"])
            self.met[user] = min(row["exposed_at"], self.met.get(user, row["exposed_at"]))
        self.both = {user for user, mine in arms.items() if len(mine) > 1}
        self.users = sorted(set(arms) - self.both)
        self.arms = {user: arms[user] == {"treatment"} for user in self.users}
        self.start = min(self.met[user] for user in self.users)
        self.known = set(arms)
        self.counts: dict[str, int] = {}
        self.rows = self._usable(outcomes, late=lambda row: row["shown_at"] < self.met[row["user_id"]])
        found = dict(self.counts)
        self.rows_before = self._usable(before, late=lambda row: row["shown_at"] >= self.start)
        self.counts_before, self.counts = self.counts, found

    def _usable(self, rows: list[Row], *, late: Any) -> list[Row]:
        self.counts = dict.fromkeys(("bad", "dwell", "repeated", "strangers", "both", "late", "silent"), 0)
        events: dict[tuple[Any, ...], Row] = {}
        for row in rows:
            if (row["user_id"] or 0) < 1 or row["story_id"] < 1 or row["clicked"] is None:
                self.counts["bad"] += 1
            elif row["dwell_seconds"] is not None and not 0 <= row["dwell_seconds"] < np.inf:
                self.counts["dwell"] += 1
            else:
                key = (row["user_id"], row["story_id"], row["shown_at"])
                self.counts["repeated"] += key in events
                event = events.setdefault(key, {**row})
                event["clicked"] |= row["clicked"]
                dwells = [dwell for dwell in (event["dwell_seconds"], row["dwell_seconds"]) if dwell is not None]
                event["dwell_seconds"] = max(dwells, default=None)
        kept = []
        for event in events.values():
            self.counts["silent"] += event["clicked"] and event["dwell_seconds"] is None
            if event["user_id"] not in self.known:
                self.counts["strangers"] += 1
            elif event["user_id"] in self.both:
                self.counts["both"] += 1
            elif late(event):
                self.counts["late"] += 1
            else:
                kept.append(event)
        return kept

    def sums(self, rows: list[Row]) -> np.ndarray:
        days = (max(row["shown_at"].date() for row in self.rows) - self.start.date()).days + 1
        sums_UDK = np.zeros((len(self.users), days, 3))
        for row in rows:
            place = max((row["shown_at"].date() - self.start.date()).days, 0)
            sums_UDK[self.users.index(row["user_id"]), place] += [1, row["clicked"], row["dwell_seconds"] or 0]
        return sums_UDK


@pytest.mark.parametrize("seed", [1, 2])
def test_sums_and_counts_are_those_of_plain_python(tmp_path: Path, seed: int) -> None:
    exposures, outcomes, before = random_test(seed)
    oracle = Oracle(exposures, outcomes, before)
    half = len(outcomes) // 2
    write(tmp_path / "outcomes" / "dt=2026-03-02" / "a.parquet", outcomes[:half], OUTCOMES)
    other = OUTCOMES.set(2, pa.field("shown_at", pa.timestamp("ms", "Europe/Berlin")))
    other = other.set(4, pa.field("dwell_seconds", pa.float32()))
    write(tmp_path / "outcomes" / "dt=2026-03-03" / "b.parquet", outcomes[half:], other)
    found = read_test(
        write(tmp_path / "exposures.parquet", exposures, EXPOSURES),
        tmp_path / "outcomes",
        before=write(tmp_path / "before.parquet", before, OUTCOMES),
    )
    assert found.days == tuple((START + timedelta(days=day)).date() for day in range(NUM_DAYS))
    assert found.is_treatment_U.tolist() == [oracle.arms[user] for user in oracle.users]
    assert found.entry_U.tolist() == [(oracle.met[user].date() - START.date()).days for user in oracle.users]
    assert found.sums_UDK == pytest.approx(oracle.sums(oracle.rows))
    assert found.before_UK == pytest.approx(oracle.sums(oracle.rows_before).sum(axis=1))
    assert found.has_dwell
    counts = [counted.count for counted in found.counts]
    assert counts[:2] == [oracle.bad_exposures, len(oracle.both)]
    assert counts[2:9] == list(oracle.counts.values())
    assert counts[9:] == list(oracle.counts_before.values())
    assert found.share_in_both == pytest.approx(len(oracle.both) / len(oracle.known))
    assert all(count > 0 for count in counts)


def small_test(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Ten users in each arm, each with one impression."""
    users = range(1, 21)
    exposures = [{"user_id": u, "arm": "treatment" if u > 10 else "control", "exposed_at": START} for u in users]
    outcomes = [
        {"user_id": u, "story_id": 1, "shown_at": START, "clicked": u % 2 == 0, "dwell_seconds": None} for u in users
    ]
    return (
        write(folder / "exposures.parquet", changes.get("exposures", exposures), changes.get("schema", EXPOSURES)),
        write(folder / "outcomes.parquet", changes.get("outcomes", outcomes), OUTCOMES),
    )


def test_users_without_outcomes_count_as_zero(tmp_path: Path) -> None:
    one = {"user_id": 1, "story_id": 1, "shown_at": START, "clicked": True, "dwell_seconds": None}
    found = read_test(*small_test(tmp_path, outcomes=[one]))
    assert found.sums_UDK.sum(axis=(0, 1)).tolist() == [1, 1, 0]
    assert len(found.sums_UDK) == 20


def test_impressions_of_the_log_contract_are_outcomes_without_dwell(tmp_path: Path) -> None:
    exposures, _ = small_test(tmp_path)
    rows = [{"user_id": 2, "story_id": 5, "shown_at": START, "clicked": True, "request_id": "r"}]
    found: Observed = read_test(exposures, write(tmp_path / "impressions.parquet", rows, IMPRESSIONS))
    assert (found.sums_UDK[1, 0].tolist(), found.has_dwell) == ([1, 1, 0], False)
    assert {counted.count for counted in found.counts} == {0}


ROW: Row = {"user_id": 1, "arm": "control", "exposed_at": START}
NAIVE = EXPOSURES.set(2, pa.field("exposed_at", pa.timestamp("us")))
FAR = {"user_id": 1, "story_id": 1, "shown_at": START + timedelta(days=4_000), "clicked": True, "dwell_seconds": None}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"exposures": []}, DataError, "the exposures are empty"),
        ({"outcomes": []}, DataError, "the outcomes are empty"),
        ({"exposures": [ROW]}, DataError, "the only arm is control"),
        ({"exposures": [ROW, {**ROW, "arm": "B"}]}, DataError, "unknown arm: 'B'"),
        ({"exposures": [{**ROW, "user_id": None}]}, DataError, "no row of the exposures has a user"),
        ({"exposures": [ROW, {**ROW, "arm": "treatment"}]}, DataError, "1 of 1 users are in both arms"),
        ({"exposures": [{**ROW, "exposed_at": START.replace(tzinfo=None)}], "schema": NAIVE}, SchemaMismatch, "zone"),
        ({"schema": EXPOSURES.remove(1)}, SchemaMismatch, "column 'arm' is missing"),
        ({"outcomes": [{**FAR, "user_id": -1}]}, DataError, "no row of the outcomes can count"),
        ({"outcomes": [{**FAR, "dwell_seconds": -1.0}]}, DataError, "or a dwell time below zero or not finite"),
        ({"outcomes": [{**FAR, "user_id": 99}]}, DataError, "no outcome is of a user who had met the test"),
        ({"outcomes": [FAR]}, DataError, "the test lasts 4,001 days"),
    ],
)
def test_bad_logs_are_refused(tmp_path: Path, changes: Any, error: type[DataError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        read_test(*small_test(tmp_path, **changes))
    assert caught.value.expected
    assert str(tmp_path) in caught.value.where
    assert caught.value.remedy


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    exposures, outcomes = small_test(tmp_path)
    with pytest.raises(DataError, match="there are no outcomes"):
        read_test(exposures, tmp_path / "nowhere")
    outcomes.write_bytes(outcomes.read_bytes()[:50])
    with pytest.raises(DataError, match="no readable Parquet file"):
        read_test(exposures, outcomes)
