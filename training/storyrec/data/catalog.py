"""The items of one domain as parallel arrays; row 0 is padding.

Suffixes: N = items with the padding row, V = raw cover, 512.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Catalog:
    """All items of one domain, sorted by id; row 0 is the padding item (id 0, no title, no cover).

    Attributes:
        item_ids_N: [N] int64, sorted, item_ids_N[0] = 0.
        titles: N raw titles.
        visual_raw_NV: [N, 512] float16, zeros where there is no cover.
        published_us_N: [N] int64, epoch microseconds UTC, 0 for padding.
        sources_N: [N] int8, index into `schema.SOURCES`; -1 for products and padding.
    """

    item_ids_N: Int64s
    titles: Sequence[str]
    visual_raw_NV: npt.NDArray[np.float16]
    published_us_N: Int64s
    sources_N: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.item_ids_N)

    def rows(self, item_ids: npt.ArrayLike) -> Int64s:
        """The row of each id, in the shape of `item_ids`; 0 for an unknown one."""
        ids = np.asarray(item_ids, np.int64)
        rows = np.minimum(np.searchsorted(self.item_ids_N, ids), len(self.item_ids_N) - 1)
        return np.where(self.item_ids_N[rows] == ids, rows, 0)
