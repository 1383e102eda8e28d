"""Click sequences as pointers into one flat log a domain.

Clicks are sorted by (user, time, item); a user's sequence before an impression is a slice of that
log, never a copy. Paper: Sec. III, the most recent clicks before the impression.

Suffixes: B = queries, C = clicks, U = distinct users.
"""

from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.schema import TIMESTAMP, Domain

DAY_US = 86_400_000_000
QUERIES_AT_A_TIME = 262_144
_COLUMNS = {Domain.STORY: ("story_id", "shown_at"), Domain.PRODUCT: ("product_id", "clicked_at")}

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClickLog:
    """All clicks of one domain, sorted by (user, time, item).

    Attributes:
        user_ids_C: [C] int64 > 0.
        item_ids_C: [C] int64 > 0.
        clicked_us_C: [C] int64, epoch microseconds UTC.
    """

    user_ids_C: Int64s
    item_ids_C: Int64s
    clicked_us_C: Int64s

    @classmethod
    def from_arrays(cls, user_ids_C: Int64s, item_ids_C: Int64s, clicked_us_C: Int64s) -> "ClickLog":
        """Sort clicks that come in any order."""
        order_C = event_order(user_ids_C, clicked_us_C, item_ids_C)
        return cls(user_ids_C[order_C], item_ids_C[order_C], clicked_us_C[order_C])

    @classmethod
    def from_table(cls, table: pa.Table, domain: Domain) -> "ClickLog":
        """The clicks of a log table, sorted.

        Args:
            table: `impressions` (of which the clicked ones count) or `product_clicks` of the log contract.
            domain: which of the two it is.
        """
        if domain is Domain.STORY:
            table = table.filter(table["clicked"])
        item, time = _COLUMNS[domain]
        return cls.from_arrays(to_int64(table["user_id"]), to_int64(table[item]), to_int64(table[time]))

    def __len__(self) -> int:
        return len(self.user_ids_C)

    def window(
        self, user_ids_B: Int64s, *, before_us_B: npt.ArrayLike, since_us_B: npt.ArrayLike, length: int
    ) -> tuple[Int64s, Int64s]:
        """Where each user's most recent clicks lie: since <= time < before, strictly before.

        Args:
            user_ids_B: whose clicks, [B] int64.
            before_us_B: the impression, [B] or scalar, epoch microseconds; a click at this very time is left out.
            since_us_B: the oldest time that counts, [B] or scalar, epoch microseconds.
            length: the most clicks of a sequence, > 0; the most recent ones stay.

        Returns:
            start_B, stop_B: int64 slices of this log, oldest click first; equal (0, 0 for an unknown
            user) where there is no click.
        """
        user_ids_B = np.asarray(user_ids_B, np.int64)
        before_us_B, since_us_B = (np.broadcast_to(us, user_ids_B.shape) for us in (before_us_B, since_us_B))
        start_B, stop_B = np.zeros(user_ids_B.shape, np.int64), np.zeros(user_ids_B.shape, np.int64)
        for first in range(0, len(user_ids_B) if len(self) else 0, QUERIES_AT_A_TIME):
            part = slice(first, first + QUERIES_AT_A_TIME)
            low_B, high_B = self._slices(user_ids_B[part])
            stop_B[part] = self._position(low_B, high_B, before_us_B[part])
            start_B[part] = self._position(low_B, stop_B[part], since_us_B[part])
        return np.maximum(start_B, stop_B - length), stop_B

    def first(self, user_ids_B: Int64s) -> Int64s:
        """Where the clicks of each user begin; 0 for an unknown one."""
        return self._slices(user_ids_B)[0] if len(self) else np.zeros(user_ids_B.shape, np.int64)

    def _slices(self, user_ids_B: Int64s) -> tuple[Int64s, Int64s]:
        """Where the clicks of each user lie; 0, 0 for an unknown one."""
        rows_B = np.minimum(np.searchsorted(self._users_U, user_ids_B), len(self._users_U) - 1)
        known_B = self._users_U[rows_B] == user_ids_B
        return np.where(known_B, self._bounds_U[rows_B], 0), np.where(known_B, self._bounds_U[rows_B + 1], 0)

    def _position(self, low_B: Int64s, high_B: Int64s, time_us_B: Int64s) -> Int64s:
        """The first click of each slice that is not before a time; the slice's end without one: a binary search."""
        low_B, high_B = low_B.copy(), high_B.copy()
        (open_B,) = np.nonzero(low_B < high_B)
        while len(open_B):
            middle_B = (low_B[open_B] + high_B[open_B]) // 2
            is_before_B = self.clicked_us_C[middle_B] < time_us_B[open_B]
            low_B[open_B[is_before_B]] = middle_B[is_before_B] + 1
            high_B[open_B[~is_before_B]] = middle_B[~is_before_B]
            open_B = open_B[low_B[open_B] < high_B[open_B]]
        return low_B

    @cached_property
    def _users_U(self) -> Int64s:
        return self.user_ids_C[self._bounds_U[:-1]]

    @cached_property
    def _bounds_U(self) -> Int64s:
        """Where each user's clicks begin, and the end of all, [users + 1]."""
        return np.append(run_starts(self.user_ids_C), len(self))


def event_order(user_ids_B: Int64s, us_B: Int64s, *ties_B: Int64s | npt.NDArray[np.bool_]) -> Int64s:
    """The order by user, time and then `ties_B`, the first one first; equal to `np.lexsort`, several times as fast.

    User and time make one number where they fit; rows that share it are then put in order by themselves.
    """
    if len(user_ids_B) < 2:
        return np.arange(len(user_ids_B))
    span = int(us_B.max()) - int(us_B.min()) + 1
    least = int(user_ids_B.min())
    if (int(user_ids_B.max()) - least + 1) * span >= 2**63:
        return np.lexsort((*ties_B[::-1], us_B, user_ids_B))
    keys_B = (user_ids_B - least) * span + (us_B - us_B.min())
    order_B = np.argsort(keys_B, kind="stable")
    sorted_B = keys_B[order_B]
    equal_B = np.append(False, sorted_B[1:] == sorted_B[:-1])
    equal_B[:-1] |= equal_B[1:]
    (places,) = np.nonzero(equal_B)
    rows = order_B[places]
    order_B[places] = rows[np.lexsort((*(tie_B[rows] for tie_B in ties_B[::-1]), keys_B[rows]))]
    return order_B


def run_starts(sorted_values: Int64s) -> Int64s:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1])[: len(sorted_values)])


def history_start_us(shown_us_B: Int64s, *, history_days: int) -> Int64s:
    """Midnight UTC of (day of the impression - history_days): where its sequences may begin."""
    return (shown_us_B // DAY_US - history_days) * DAY_US


def midnight_us(day: date) -> int:
    """Where a day begins, epoch microseconds UTC."""
    return (day - date(1970, 1, 1)).days * DAY_US


def to_int64(column: pa.ChunkedArray) -> Int64s:
    """An id or timestamp column without nulls as int64; timestamps become epoch microseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(TIMESTAMP).cast(pa.int64())
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(), np.int64)


def distinct(sorted_values: Int64s) -> Int64s:
    """What np.unique gives, which hashes large arrays far more slowly than sorting takes."""
    return sorted_values[run_starts(sorted_values)]
