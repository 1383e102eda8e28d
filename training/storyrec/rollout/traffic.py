"""What champion and canary answered: a server's own answers as they happen, or those of all servers from their log."""

import threading
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.rollout.checks import Arm

NUM_KEPT = 2_000
"""Answers of each arm whose latency and scores are judged: the last ones."""


class Traffic:
    """A server's own answers beside one canary; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arms = {is_canary: _Kept() for is_canary in (False, True)}

    def note(self, *, is_canary: bool, latency_ms: float, scores_B: np.ndarray) -> None:
        """Count an answer."""
        with self._lock:
            self._arms[is_canary].answers.append((latency_ms, scores_B))
            self._arms[is_canary].num_requests += 1

    def note_failure(self) -> None:
        """Count a request that the canary could not answer."""
        with self._lock:
            self._arms[True].num_requests += 1
            self._arms[True].num_errors += 1

    def arms(self) -> tuple[Arm, Arm]:
        """Champion and canary."""
        with self._lock:
            champion, canary = (self._arms[is_canary].arm() for is_canary in (False, True))
        return champion, canary


class _Kept:
    def __init__(self) -> None:
        self.answers: deque[tuple[float, np.ndarray]] = deque(maxlen=NUM_KEPT)
        self.num_requests = self.num_errors = 0

    def arm(self) -> Arm:
        latency_ms_A = np.array([latency_ms for latency_ms, _ in self.answers], np.float64)
        scores_K = np.concatenate([np.empty(0), *(scores_B for _, scores_B in self.answers)])
        return Arm(self.num_requests, self.num_errors, latency_ms_A, scores_K)


def read_arms(answers: Path, *, since: datetime, versions: Sequence[str]) -> dict[str, Arm]:
    """What each version answered, or scored unseen, since a moment: all counts, latency and scores of the last answers.

    Args:
        answers: folder of the servers' answer logs; where there is none yet, nobody answered.
        since: aware.
        versions: of bundles.
    """
    files = [str(path) for path in answers.glob("dt=*/*.parquet") if path.parent.name >= f"dt={since:%Y-%m-%d}"]
    return {version: _read_arm(files, since=since, version=version) for version in versions}


def _read_arm(files: Sequence[str], *, since: datetime, version: str) -> Arm:
    if not files:
        return Arm(0, 0, np.empty(0), np.empty(0))
    source = "FROM read_parquet(?) WHERE model_version = ? AND answered_at >= ?::TIMESTAMPTZ"
    values = [files, version, since.isoformat()]
    ((num_requests, num_errors),) = duckdb.execute(f"SELECT count(*), count(error) {source}", values).fetchall()
    query = f"SELECT latency_ms, scores {source} AND error IS NULL ORDER BY answered_at DESC LIMIT {NUM_KEPT}"
    found = duckdb.sql(query, params=values)
    assert found is not None
    last: pa.Table = found.to_arrow_table()
    return Arm(
        num_requests=num_requests,
        num_errors=num_errors,
        latency_ms_A=np.asarray(last["latency_ms"].to_numpy(), np.float64),
        scores_K=np.asarray(pc.list_flatten(last["scores"]).to_numpy(), np.float64),
    )
