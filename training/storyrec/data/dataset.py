"""The dataset of one day's run: catalogs, clicks, pairs and instances as arrays in one folder.

Suffixes: C = clicks, M = pairs.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyrec.data.catalog import Catalog
from storyrec.data.instances import Instances
from storyrec.data.windows import ResolvedWindows
from storyrec.features.sequences import ClickLog
from storyrec.features.titles import Vocabulary

__all__ = ["Dataset", "Instances", "ResolvedWindows"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Everything that the models of one day learn from and are judged on.

    Attributes:
        day: the run's day, the last held-out day.
        windows: which days serve what.
        sequence_length: the most clicks that the instances point to in one domain.
        stories, products: all items published up to and including `day`.
        vocabulary: trained on titles published before the held-out days.
        story_clicks, product_clicks: from the start of history to `day`.
        story_click_rows_C, product_click_rows_C: the catalog row of each click, [C] int64.
        pairs_M2: (story row, row of a product it mounts), [M, 2] int64, published before the held-out days.
        train: every click of the training days and as many sampled non-clicks.
        validation: the last impressions of the training days, at their natural click rate.
        holdout: all impressions of the held-out days.
        digest: SHA-256 of all this.
    """

    day: date
    windows: ResolvedWindows
    sequence_length: int
    stories: Catalog
    products: Catalog
    vocabulary: Vocabulary
    story_clicks: ClickLog
    product_clicks: ClickLog
    story_click_rows_C: Int64s
    product_click_rows_C: Int64s
    pairs_M2: Int64s
    train: Instances
    validation: Instances
    holdout: Instances
    digest: str

    def save(self, folder: Path) -> None:
        """Write the dataset as a folder that appears whole; dataset.json is written last."""
        raise SystemExit("written next")

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Open a saved dataset; arrays stay on disk until they are touched."""
        raise SystemExit("written next")

    def instances_for(self, instances: Instances, *, history_days: int) -> Instances:
        """The same impressions with the sequences that another model's history window allows."""
        raise SystemExit("written next")
