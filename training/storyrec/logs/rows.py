"""Rows under judgement: a table's rows with their days and the catalog so far, and what rules look at in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storyrec.logs.known import KnownIds
from storyrec.schema import COVER_WIDTH

Mask = NDArray[np.bool_]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@dataclass(frozen=True)
class Rows:
    """Rows of one table with what the rules need to judge them.

    `day_B` is each row's partition in days since 1970, ascending; `known` the catalog so far.
    """

    table: pa.Table
    day_B: NDArray[np.int64]
    known: Mapping[str, KnownIds] = field(default_factory=dict)

    def null(self, column: str) -> Mask:
        """Where a column is null. -> [B] bool."""
        return self.table[column].is_null().to_numpy()

    def ids(self, column: str) -> NDArray[np.int64]:
        """A column of ids, 0 for null. -> [B] int64."""
        return pc.fill_null(self.table[column], 0).to_numpy()

    def days_off(self, column: str) -> NDArray[np.float64]:
        """Days from the partition's day to the day of a timestamp, NaN for null. -> [B] float."""
        us_B = pc.fill_null(self.table[column].cast(pa.int64()), 0).to_numpy()
        return np.where(self.null(column), np.nan, us_B // DAY_US - self.day_B)

    @cached_property
    def cover_width(self) -> NDArray[np.float64]:
        """Numbers in each cover, NaN for no cover. -> [B] float."""
        return pc.list_value_length(self.table["cover"]).cast(pa.float64()).to_numpy()

    @cached_property
    def cover_norm(self) -> NDArray[np.float64]:
        """Norm of each cover: NaN without one of the right width, infinite where a number is not finite."""
        norm_B = np.full(self.table.num_rows, np.nan)
        whole = np.flatnonzero(self.cover_width == COVER_WIDTH)
        for start in range(0, len(whole), 4_096):  # a day's covers need not be in memory twice
            some = whole[start : start + 4_096]
            flat = pc.list_flatten(self.table["cover"].take(pa.array(some)))
            values = np.concatenate([np.empty(0, np.float32), *(c.to_numpy(zero_copy_only=False) for c in flat.chunks)])
            with np.errstate(over="ignore", invalid="ignore"):
                square_B = np.square(values.reshape(-1, COVER_WIDTH).astype(np.float64)).sum(axis=1)
            norm_B[some] = np.sqrt(np.where(np.isfinite(square_B), square_B, np.inf))
        return norm_B
