"""Instances: impressions with pointers to the clicks before them.

Suffix: B = instances.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Instances:
    """Impressions of catalog stories, sorted by (user, time, story).

    Attributes:
        user_ids_B: [B] int64.
        story_rows_B: catalog row of the target, [B] int64 > 0.
        shown_us_B: [B] int64, epoch microseconds UTC.
        clicked_B: the label, [B] bool.
        story_start_B, story_stop_B: the story sequence as a slice of the dataset's story clicks, [B] int64.
        product_start_B, product_stop_B: the product sequence likewise.
    """

    user_ids_B: Int64s
    story_rows_B: Int64s
    shown_us_B: Int64s
    clicked_B: npt.NDArray[np.bool_]
    story_start_B: Int64s
    story_stop_B: Int64s
    product_start_B: Int64s
    product_stop_B: Int64s

    def __len__(self) -> int:
        return len(self.user_ids_B)
