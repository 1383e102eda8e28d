"""Which days serve what: history, training, held-out days, and the width of a time block.

A setting of "auto" is resolved from the logs; the reasons are kept beside the numbers.
"""

from dataclasses import dataclass
from datetime import date, timedelta


@dataclass(frozen=True)
class ResolvedWindows:
    """The windows of one day's run, all settled.

    Attributes:
        history_days: a sequence begins at midnight this many days before the impression's day.
        training_days: days of impressions before the held-out days, validation included.
        holdout_days: days ending at the run's day that the models are judged on.
        block_hours: width of a time block, hours.
        validation_share: the last share of the training impressions.
        reasons: one sentence a window, why it is so.
    """

    history_days: int
    training_days: int
    holdout_days: int
    block_hours: int
    validation_share: float
    reasons: tuple[str, ...] = ()

    def holdout_start(self, day: date) -> date:
        """The first held-out day of the run of `day`."""
        return day - timedelta(days=self.holdout_days - 1)

    def training_start(self, day: date) -> date:
        """The first day whose impressions train."""
        return self.holdout_start(day) - timedelta(days=self.training_days)

    def history_start(self, day: date) -> date:
        """The first day whose clicks may stand in a sequence."""
        return self.training_start(day) - timedelta(days=self.history_days)
