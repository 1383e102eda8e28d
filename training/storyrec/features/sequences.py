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
        order_C = np.lexsort((item_ids_C, clicked_us_C, user_ids_C))
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
        if not len(self):
            return np.zeros(user_ids_B.shape, np.int64), np.zeros(user_ids_B.shape, np.int64)
        user_rows_B = np.minimum(np.searchsorted(self._users_U, user_ids_B), len(self._users_U) - 1)
        known_B = self._users_U[user_rows_B] == user_ids_B
        stop_B = np.where(known_B, self._position(user_rows_B, before_us_B), 0)
        first_B = np.where(known_B, self._position(user_rows_B, since_us_B), 0)
        return np.minimum(np.maximum(first_B, stop_B - length), stop_B), stop_B

    def _position(self, user_rows_B: Int64s, time_us_B: npt.ArrayLike) -> Int64s:
        """How many clicks sort before (user, time)."""
        ranks_B = np.searchsorted(self._times, np.asarray(time_us_B, np.int64))
        return np.searchsorted(self._keys_C, user_rows_B * self._stride + ranks_B)

    @cached_property
    def _users_U(self) -> Int64s:
        return distinct(self.user_ids_C)

    @cached_property
    def _times(self) -> Int64s:
        return distinct(np.sort(self.clicked_us_C))

    @property
    def _stride(self) -> int:
        return len(self._times) + 1

    @cached_property
    def _keys_C(self) -> Int64s:
        # ranks instead of the times themselves: users x microseconds of ten years overflow 64 bits
        user_rows_C = np.searchsorted(self._users_U, self.user_ids_C)
        return user_rows_C * self._stride + np.searchsorted(self._times, self.clicked_us_C)


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
    return sorted_values[np.concatenate([[True], np.diff(sorted_values) > 0])[: len(sorted_values)]]
