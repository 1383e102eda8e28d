"""Rows under judgement: a table's rows with their days and the catalog so far, and what rules look at in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storyrec.logs.known import KnownIds
from storyrec.schema import COVER_WIDTH

Mask = NDArray[np.bool_]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
COVERS_AT_ONCE = 1_024


@dataclass(frozen=True)
class Rows:
    """Rows of one table with what the rules need to judge them.

    `table` has its covers measured (`measure_covers`); `day_B` is each row's partition in days since 1970,
    ascending; `known` the catalog so far.
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

    @property
    def cover_width(self) -> NDArray[np.float64]:
        """Numbers in each cover, NaN for no cover. -> [B] float."""
        return self._cover("width")

    @property
    def cover_norm(self) -> NDArray[np.float64]:
        """Norm of each cover: NaN without one of the right width, infinite where a number is not finite."""
        return self._cover("norm")

    def _cover(self, part: str) -> NDArray[np.float64]:
        return pc.struct_field(self.table["cover"], part).to_numpy()


def measure_covers(rows: pa.Table) -> pa.Table:
    """Put width and norm in place of each cover: all that rules look at, in a hundredth of the room."""
    if "cover" not in rows.column_names:
        return rows
    covers = rows["cover"].combine_chunks()
    width_B = pc.list_value_length(covers).cast(pa.float64()).to_numpy(zero_copy_only=False)
    norm_B = np.full(len(covers), np.nan)
    whole = np.flatnonzero(width_B == COVER_WIDTH)
    for start in range(0, len(whole), COVERS_AT_ONCE):
        some = whole[start : start + COVERS_AT_ONCE]
        values = pc.list_flatten(covers.take(pa.array(some))).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            square_B = np.square(values.reshape(-1, COVER_WIDTH).astype(np.float64)).sum(axis=1)
        norm_B[some] = np.sqrt(np.where(np.isfinite(square_B), square_B, np.inf))
    measured = pa.StructArray.from_arrays([pa.array(width_B), pa.array(norm_B)], ["width", "norm"])
    return rows.set_column(rows.column_names.index("cover"), "cover", measured)
