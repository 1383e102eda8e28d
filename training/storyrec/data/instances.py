"""Instances: impressions with pointers to the clicks before them.

Suffix: B = impressions or instances.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from storyrec.data.catalog import Catalog
from storyrec.data.events import Impressions
from storyrec.errors import DataError
from storyrec.features.sequences import DAY_US, ClickLog, history_start_us

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Instances:
    """Impressions of catalog stories, sorted by (user, time, story, clicked).

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
    clicked_B: Bools
    story_start_B: Int64s
    story_stop_B: Int64s
    product_start_B: Int64s
    product_stop_B: Int64s

    @classmethod
    def of(cls, impressions: Impressions, *, stories: Catalog) -> "Instances":
        """All impressions of stories that the catalog knows; their sequences are still empty."""
        story_rows_B = stories.rows(impressions.story_ids_B)
        known_B = story_rows_B > 0
        some = impressions.take(known_B)
        zeros_B = np.zeros(len(some), np.int64)
        parts = (some.user_ids_B, story_rows_B[known_B], some.shown_us_B, some.clicked_B)
        return cls(*parts, zeros_B, zeros_B, zeros_B, zeros_B)

    def __len__(self) -> int:
        return len(self.user_ids_B)

    def take(self, index: Int64s | Bools) -> "Instances":
        """Some of them, by number or mask."""
        return Instances(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def with_sequences(
        self, *, story_clicks: ClickLog, product_clicks: ClickLog, history_days: int, length: int
    ) -> "Instances":
        """The same impressions, pointing to the clicks before them.

        Args:
            story_clicks, product_clicks: what the pointers point into.
            history_days: sequences begin at midnight this many days before the impression's day.
            length: the most clicks of a sequence.
        """
        bounds = {
            "before_us_B": self.shown_us_B,
            "since_us_B": history_start_us(self.shown_us_B, history_days=history_days),
        }
        story_start_B, story_stop_B = story_clicks.window(self.user_ids_B, length=length, **bounds)
        product_start_B, product_stop_B = product_clicks.window(self.user_ids_B, length=length, **bounds)
        return replace(
            self,
            story_start_B=story_start_B,
            story_stop_B=story_stop_B,
            product_start_B=product_start_B,
            product_stop_B=product_stop_B,
        )


def split_training(impressions: Instances, *, validation_share: float, seed: int) -> tuple[Instances, Instances]:
    """Training (balanced) and validation (at the natural click rate).

    Args:
        impressions: of the training days.
        validation_share: about how much of them validates: their last impressions.
        seed: of the draw of training's non-clicked impressions.

    Raises:
        DataError: training would hold one class only, or nothing.
    """
    training, validation = split_by_time(impressions, last_share=validation_share)
    training = balance(training, seed=seed)
    require_both_classes(int(training.clicked_B.sum()), len(training))
    return training, validation


def split_by_time(instances: Instances, *, last_share: float) -> tuple[Instances, Instances]:
    """Cut impressions in two at a time, so that everything in the second part is later.

    Args:
        instances: in any order.
        last_share: about how many go to the second part; impressions of one time stay together.

    Raises:
        DataError: all impressions have one time.
    """
    times, counts = np.unique(instances.shown_us_B, return_counts=True)
    require_two_times(len(instances), num_times=len(times))
    earlier = np.cumsum(counts)[:-1]
    cut_us = times[1:][np.argmin(np.abs(earlier - (1 - last_share) * len(instances)))]
    return instances.take(instances.shown_us_B < cut_us), instances.take(instances.shown_us_B >= cut_us)


def balance(instances: Instances, *, seed: int) -> Instances:
    """Every clicked impression and as many of the same day's non-clicked ones, drawn at random.

    Paper: Sec. IV-A. A day with fewer non-clicks than clicks keeps all it has.

    Args:
        instances: at their natural click rate.
        seed: decides, with the day, which non-clicked ones stay.
    """
    days_B = instances.shown_us_B // DAY_US
    keep_B = instances.clicked_B.copy()
    by_day = np.argsort(days_B, kind="stable")
    days, starts = np.unique(days_B[by_day], return_index=True)
    for day, members in zip(days.tolist(), np.split(by_day, starts)[1:], strict=True):
        passed = members[~instances.clicked_B[members]]
        keep_B[passed[draw_passed(len(members) - len(passed), len(passed), seed=seed, day=day)]] = True
    return instances.take(keep_B)


def draw_passed(num_clicked: int, num_passed: int, *, seed: int, day: int) -> Int64s:
    """Which of a day's non-clicks, in order of user, time and story, go with its clicks.

    Args:
        num_clicked, num_passed: of the day.
        seed, day: decide the draw; `day` in days since 1970.
    """
    generator = np.random.default_rng([seed, day])
    return generator.choice(num_passed, min(num_passed, num_clicked), replace=False, shuffle=False)


def require_two_times(num_impressions: int, *, num_times: int) -> None:
    """Refuse training days that cannot be cut in two.

    Raises:
        DataError: all impressions have one time.
    """
    if num_times < 2:
        raise DataError(
            f"the {num_impressions} impressions of the training days carry {num_times} distinct time(s)",
            expected="at least two, so that the last ones can validate",
            remedy="set a larger windows.training_days, or run a later day",
        )


def require_both_classes(num_clicked: int, num_instances: int) -> None:
    """Refuse to train on one class.

    Raises:
        DataError: there is no click, or nothing else.
    """
    if num_clicked in (0, num_instances):
        raise DataError(
            f"the {num_instances} training instances hold {num_clicked} clicks",
            expected="clicked and non-clicked impressions in the training days",
            where="validated/impressions",
            remedy="set a larger windows.training_days, or run a later day",
        )
