"""Click events as rows of the feature store: a user's sequence as it stands after each click.

A row's event time is the click plus one microsecond. The store finds values with
`event time <= impression`, so the click of an impression, which happens at the very time of the
impression, never stands in its own sequence. Clicks of a user at one microsecond share one row.

Suffixes: C = clicks, R = rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.features.sequences import ClickLog, to_int64
from storyrec.schema import TIMESTAMP, Domain

EVENT_TIME = "event_timestamp"
KNOWN_TIME = "known_at"
VIEWS = {Domain.STORY: "user_story_sequence", Domain.PRODUCT: "user_product_sequence"}
"""The feature view of each domain's sequences."""
COLUMNS = {Domain.STORY: ("story_ids", "story_clicked_us"), Domain.PRODUCT: ("product_ids", "product_clicked_us")}
"""Item ids and click times (epoch microseconds) of each view, oldest click first."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Slices of a click log, one a row, at most `length` clicks each.

    Attributes:
        log: what the slices point into.
        start_R, stop_R: [R] int64.
    """

    log: ClickLog
    start_R: Int64s
    stop_R: Int64s

    @property
    def _flat(self) -> Int64s:
        """The positions of all slices, one after the other."""
        lengths_R = self.stop_R - self.start_R
        offsets_R = np.cumsum(lengths_R) - lengths_R
        positions: Int64s = np.arange(lengths_R.sum()) + np.repeat(self.start_R - offsets_R, lengths_R)
        return positions

    def as_log(self) -> ClickLog:
        """The clicks of all slices as a log of their own; the slices must not overlap."""
        flat = self._flat
        return ClickLog(self.log.user_ids_C[flat], self.log.item_ids_C[flat], self.log.clicked_us_C[flat])

    def as_lists(self) -> tuple[pa.ListArray, pa.ListArray]:
        """Item ids and click times of every slice, as list columns of R rows."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.stop_R - self.start_R)]).astype(np.int32))
        flat = self._flat
        items, times = pa.array(self.log.item_ids_C[flat]), pa.array(self.log.clicked_us_C[flat])
        return pa.ListArray.from_arrays(offsets, items), pa.ListArray.from_arrays(offsets, times)


def sequences_after_clicks(log: ClickLog, *, since_us: int, length: int) -> Sequences:
    """A user's sequence after every moment with a click at or after `since_us`.

    Args:
        log: the clicks since then and, before them, at least each user's last `length` ones.
        since_us: epoch microseconds.
        length: the most clicks of a sequence; the most recent ones stay.
    """
    users_C, times_C = log.user_ids_C, log.clicked_us_C
    last_C = np.ones(len(log), bool)
    last_C[:-1] = (users_C[1:] != users_C[:-1]) | (times_C[1:] != times_C[:-1])
    return _ending_at(log, np.flatnonzero(last_C & (times_C >= since_us)), length=length)


def latest_sequences(log: ClickLog, *, length: int) -> Sequences:
    """Every user's sequence after the last click of the log, in order of user id."""
    last_C = np.ones(len(log), bool)
    last_C[:-1] = log.user_ids_C[1:] != log.user_ids_C[:-1]
    return _ending_at(log, np.flatnonzero(last_C), length=length)


def sequence_table(sequences: Sequences, *, domain: Domain) -> pa.Table:
    """The rows of a user sequence view.

    A click is known the moment after it happened, so both timestamps are equal. A day that is built
    again states what the log says now: its rows replace the earlier ones, in the store as in the
    training sequences.
    """
    last_R = sequences.stop_R - 1
    event_time = pa.array(sequences.log.clicked_us_C[last_R] + 1).cast(TIMESTAMP)
    items, times = sequences.as_lists()
    names = ["user_id", *COLUMNS[domain], EVENT_TIME, KNOWN_TIME]
    return pa.table([pa.array(sequences.log.user_ids_C[last_R]), items, times, event_time, event_time], names=names)


def log_table(log: ClickLog) -> pa.Table:
    """A click log as a table; `log_from_table` is the inverse."""
    columns = [pa.array(log.user_ids_C), pa.array(log.item_ids_C), pa.array(log.clicked_us_C).cast(TIMESTAMP)]
    return pa.table(columns, names=["user_id", "item_id", "clicked_at"])


def log_from_table(table: pa.Table) -> ClickLog:
    """The click log that `log_table` wrote."""
    return ClickLog.from_arrays(*(to_int64(table[name]) for name in ("user_id", "item_id", "clicked_at")))


def join_logs(logs: list[ClickLog]) -> ClickLog:
    """Several logs as one, sorted."""
    parts = [[getattr(log, name) for log in logs] for name in ("user_ids_C", "item_ids_C", "clicked_us_C")]
    return ClickLog.from_arrays(*(np.concatenate([np.zeros(0, np.int64), *part]) for part in parts))


def _ending_at(log: ClickLog, last_R: Int64s, *, length: int) -> Sequences:
    first_R = np.searchsorted(log.user_ids_C, log.user_ids_C[last_R])
    return Sequences(log, np.maximum(first_R, last_R + 1 - length), last_R + 1)
