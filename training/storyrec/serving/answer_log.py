"""The answer log: what was answered to whom and from what, as Parquet.

    ANSWERS/dt=YYYY-MM-DD/part-<time>-<process>-<number>.parquet

A thread of its own writes; a request never waits for the disk. Files appear whole. Where answers come faster
than the disk takes them, or the disk refuses, answers are dropped and counted.
"""

import io
import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.schema import TIMESTAMP
from storyrec.serving.answers import Answer, Failure
from storyrec.serving.metrics import ANSWERS_DROPPED, ANSWERS_LOGGED
from storyrec.storage import write_file

IDS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("answered_at", TIMESTAMP),
        ("route", pa.string()),
        ("user_id", pa.int64()),
        ("model_version", pa.string()),
        ("role", pa.string()),
        ("latency_ms", pa.float64()),
        ("error", pa.string()),
        ("as_of", TIMESTAMP),
        ("sequences", pa.string()),
        ("fallback", pa.string()),
        ("story_ids", IDS),
        ("story_clicked_us", IDS),
        ("product_ids", IDS),
        ("product_clicked_us", IDS),
        ("sequence_age_seconds", pa.float64()),
        ("candidate_ids", IDS),
        ("scores", pa.list_(pa.float32())),
        ("unknown_ids", IDS),
        ("appended_ids", IDS),
        ("retrieval", pa.string()),
    ]
)
MAX_WAITING = 10_000
ANSWERS_A_FILE = 5_000
ANSWERS_A_PIECE, PAUSE_SECONDS = 10, 0.005

log = logging.getLogger(__name__)


class AnswerLog:
    """Writes answers from a thread of its own.

    Args:
        folder: where the days are.
        flush_seconds: how long an answer waits for others at most.
        max_waiting: answers in memory; more are dropped.
    """

    def __init__(self, folder: Path, *, flush_seconds: float, max_waiting: int = MAX_WAITING) -> None:
        self.folder, self._flush_seconds, self._max_waiting = folder, flush_seconds, max_waiting
        self._waiting: deque[Answer | Failure] = deque()
        self._is_closed, self._wake = False, threading.Event()
        self._number = 0
        self._writer = threading.Thread(target=self._write_all, name="answer-log", daemon=True)
        self._writer.start()

    def put(self, answer: Answer | Failure) -> None:
        """Have an answer written, or drop it where too many wait."""
        if len(self._waiting) >= self._max_waiting:
            ANSWERS_DROPPED.inc()
            return
        self._waiting.append(answer)
        if len(self._waiting) >= ANSWERS_A_FILE:
            self._wake.set()

    def close(self) -> None:
        """Write what waits and end."""
        self._is_closed = True
        self._wake.set()
        self._writer.join(30)

    def _write_all(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # this thread's; requests come first
        while self._waiting or not self._is_closed:
            # many at once: a thread that wakes for each answer takes turns with the requests
            if len(self._waiting) < ANSWERS_A_FILE and not self._is_closed:
                self._wake.wait(self._flush_seconds)
                self._wake.clear()
            by_day: dict[str, list[Answer | Failure]] = {}
            for _ in range(min(len(self._waiting), ANSWERS_A_FILE)):
                answer = self._waiting.popleft()
                day = datetime.fromtimestamp(answer.answered_us / 1e6, UTC).date().isoformat()
                by_day.setdefault(day, []).append(answer)
            for day, answers in by_day.items():
                self._write(day, answers)

    def _write(self, day: str, answers: list[Answer | Failure]) -> None:
        self._number += 1
        name = f"part-{time.time_ns()}-{os.getpid()}-{self._number}.parquet"
        buffer = io.BytesIO()
        try:
            pq.write_table(_table(answers), buffer, compression="zstd")
            write_file(self.folder / f"dt={day}" / name, buffer.getvalue())
        except Exception as error:  # whatever it is: an error that ended this thread would end all logging
            ANSWERS_DROPPED.inc(len(answers))
            log.error("%d answers were not logged: %s: %s", len(answers), type(error).__name__, error)
        else:
            ANSWERS_LOGGED.inc(len(answers))


def _table(answers: list[Answer | Failure]) -> pa.Table:
    batches = []
    for start in range(0, len(answers), ANSWERS_A_PIECE):
        rows = [row(answer) for answer in answers[start : start + ANSWERS_A_PIECE]]
        batches.append(pa.RecordBatch.from_pylist(rows, SCHEMA))
        time.sleep(PAUSE_SECONDS)  # no request is answered while a piece is made
    return pa.Table.from_batches(batches, SCHEMA)


def row(answer: Answer | Failure) -> dict[str, Any]:
    """An answer as a row of the log; the sequences are those that were found, before the model cuts them."""
    told = {
        "request_id": answer.request_id,
        "answered_at": answer.answered_us,
        "route": answer.route,
        "user_id": answer.user_id,
        "model_version": answer.model_version,
        "role": answer.role,
    }
    if isinstance(answer, Failure):
        return told | {"error": answer.error}
    looked = answer.looked
    sequences = {
        "story_ids": looked.story_clicks.item_ids_C,
        "story_clicked_us": looked.story_clicks.clicked_us_C,
        "product_ids": looked.product_clicks.item_ids_C,
        "product_clicked_us": looked.product_clicks.clicked_us_C,
    }
    return {
        **told,
        "latency_ms": answer.latency_ms,
        "as_of": answer.history.now_us,
        "sequences": looked.origin,
        "fallback": looked.reason or None,
        **{name: np.asarray(values, np.int64) for name, values in sequences.items()},
        "sequence_age_seconds": answer.age_seconds,
        "candidate_ids": answer.candidate_ids_B,
        "scores": answer.scores_B,
        "unknown_ids": answer.candidate_ids_B[answer.unknown_B],
        "appended_ids": answer.candidate_ids_B[answer.appended_B],
        "retrieval": answer.retrieval,
    }
