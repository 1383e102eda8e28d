"""What champion and canary answered: a server's own answers as they happen, or those of all servers from their log."""

import random
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.rollout.checks import Arm

NUM_KEPT = 2_000
"""Answers of each arm whose latency and scores are judged, drawn evenly from all since the canary has its share."""


class Traffic:
    """A server's own answers to users beside one canary; safe for several threads.

    Args:
        canary: version; what others answered or failed in is not counted.
        champion: likewise.
    """

    def __init__(self, *, champion: str, canary: str) -> None:
        self._lock = threading.Lock()
        self._kept = {version: _Kept() for version in (champion, canary)}

    def is_of(self, champion: str, canary: str) -> bool:
        """Whether it counts these two."""
        return [*self._kept] == [champion, canary]

    def note(self, version: str, *, latency_ms: float, scores_B: npt.NDArray[np.float32]) -> None:
        """Count an answer."""
        with self._lock:
            if version in self._kept:
                self._kept[version].add((latency_ms, scores_B))

    def note_failure(self, version: str) -> None:
        """Count a request that a version could not answer."""
        with self._lock:
            if version in self._kept:
                self._kept[version].num_errors += 1

    def arms(self) -> tuple[Arm, Arm]:
        """Champion and canary."""
        with self._lock:
            kept = [(found.num_answers, found.num_errors, [*found.answers]) for found in self._kept.values()]
        champion, canary = (_arm(*found) for found in kept)
        return champion, canary


class _Kept:
    """An even sample of answers, by reservoir sampling."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, npt.NDArray[np.float32]]] = []
        self.num_answers = self.num_errors = 0
        self._generator = random.Random(0)

    def add(self, answer: tuple[float, npt.NDArray[np.float32]]) -> None:
        self.num_answers += 1
        if len(self.answers) < NUM_KEPT:
            self.answers.append(answer)
        elif (place := self._generator.randrange(self.num_answers)) < NUM_KEPT:
            self.answers[place] = answer


def _arm(num_answers: int, num_errors: int, answers: Sequence[tuple[float, npt.NDArray[np.float32]]]) -> Arm:
    return Arm(
        num_requests=num_answers + num_errors,
        num_errors=num_errors,
        latency_ms_A=np.array([latency_ms for latency_ms, _ in answers], np.float64),
        scores_K=np.concatenate([np.empty(0), *(scores_B for _, scores_B in answers)]),
    )


def read_arms(answers: Path, *, since: datetime, versions: Sequence[str]) -> dict[str, Arm]:
    """What each version answered users, or scored unseen, since a moment.

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
    # requests without a user are all the champion's, and of another kind
    source = "FROM read_parquet(?) WHERE model_version = ? AND answered_at >= ?::TIMESTAMPTZ AND user_id IS NOT NULL"
    values = [files, version, since.isoformat()]
    ((num_requests, num_errors),) = duckdb.execute(f"SELECT count(*), count(error) {source}", values).fetchall()
    query = f"SELECT latency_ms, scores {source} AND error IS NULL ORDER BY hash(request_id) LIMIT {NUM_KEPT}"
    found = duckdb.sql(query, params=values)
    assert found is not None
    last: pa.Table = found.to_arrow_table()
    return Arm(
        num_requests=num_requests,
        num_errors=num_errors,
        latency_ms_A=np.asarray(last["latency_ms"].to_numpy(), np.float64),
        scores_K=np.asarray(pc.list_flatten(last["scores"]).to_numpy(), np.float64),
    )
