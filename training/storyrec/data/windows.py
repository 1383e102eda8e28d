"""Which days serve what: history, training, held-out days, and the width of a time block.

A setting of "auto" is resolved from the logs; the reasons are kept beside the numbers. Days are
calendar days: history | training (its last share = validation) | held-out days, ending at the run's day.

Suffix: U = users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from storyrec.config import Auto
from storyrec.errors import DataError

Int64s = npt.NDArray[np.int64]

HISTORY_DAYS = 7  # the 168 time blocks of an hour cover a week
ENOUGH_INSTANCES = 200_000
ENOUGH_USERS = 1_000
BLOCK_HOURS = (1, 24, 168, 672)


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


@dataclass(frozen=True)
class DayCounts:
    """What the windows need to know of a day's impressions.

    Attributes:
        num_clicked: how many were clicked.
        clicked_users_U, passed_users_U: users with a clicked and with a non-clicked impression, distinct.
        is_fine: whether any time is another than midnight UTC.
    """

    num_clicked: int
    clicked_users_U: Int64s
    passed_users_U: Int64s
    is_fine: bool


def resolve_windows(
    *,
    day: date,
    days: Sequence[date],
    count: Callable[[date], DayCounts],
    num_time_blocks: int,
    validation_share: float,
    history_days: int | Auto = "auto",
    training_days: int | Auto = "auto",
    holdout_days: int | Auto = "auto",
    block_hours: int | Auto = "auto",
) -> ResolvedWindows:
    """Turn "auto" into numbers.

    Args:
        day: the run's day.
        days: the validated days up to and including `day`, ascending.
        count: counts of one of `days`; called for the newest days first and only as far back as needed.
        num_time_blocks: blocks of `block_hours` before a click counts as older.
        validation_share, history_days, training_days, holdout_days, block_hours: the settings.

    Raises:
        DataError: no day is left to train on.
    """
    first, known = days[0], set(days)
    span = (day - first).days + 1
    is_fine = count(day).is_fine

    if holdout_days == "auto":
        most = max(1, span // 3)
        holdout, num_users = _smallest_holdout(day, known, count, most)
        why_holdout = f"{num_users} users have clicked and non-clicked impressions in them"
        if num_users < ENOUGH_USERS:
            why_holdout += f", fewer than {ENOUGH_USERS}, but more than a third of the {span} days is too much"
    else:
        holdout, why_holdout = holdout_days, "as the settings say"
    available = span - holdout
    if not any(d <= day - timedelta(days=holdout) for d in days):
        raise DataError(
            f"no validated day lies before the {holdout} held-out day(s) that end at {day}",
            expected="at least one earlier day to train on",
            where=f"validated days {first} to {day}",
            remedy="run a later day, validate earlier days, or set a smaller windows.holdout_days",
        )

    if training_days == "auto":
        # clicks need days before the training days to stand in sequences
        most = max(1, available - min(HISTORY_DAYS, available // 2)) if is_fine else available
        training, num_instances = _smallest_training(day - timedelta(days=holdout), known, count, most)
        why_training = f"they give {num_instances} training instances"
        if num_instances < ENOUGH_INSTANCES:
            why_training += f", fewer than {ENOUGH_INSTANCES}, but all that the days leave"
    else:
        training, why_training = min(training_days, available), "as the settings say"
        if training < training_days:
            why_training = f"the settings say {training_days}, but there are no more"

    if history_days == "auto":
        history, why_history = automatic_history(is_fine=is_fine, span=span)
    else:
        history, why_history = history_days, "as the settings say"

    if block_hours == "auto":
        fitting = [hours for hours in BLOCK_HOURS if hours * num_time_blocks >= history * 24]
        block = fitting[0] if fitting else BLOCK_HOURS[-1]
        why_block = f"{num_time_blocks} such blocks are {block * num_time_blocks / 24:g} days"
    else:
        block, why_block = block_hours, "as the settings say"

    return ResolvedWindows(
        history_days=history,
        training_days=training,
        holdout_days=holdout,
        block_hours=block,
        validation_share=validation_share,
        reasons=(
            f"history_days = {history}: {why_history}",
            f"training_days = {training}: {why_training}",
            f"holdout_days = {holdout}: {why_holdout}",
            f"block_hours = {block}: {why_block}",
        ),
    )


def automatic_history(*, is_fine: bool, span: int) -> tuple[int, str]:
    """How many days a sequence reaches back unless the settings say so, and why.

    Args:
        is_fine: whether times are finer than a day.
        span: days of the logs.
    """
    if is_fine:
        return HISTORY_DAYS, "times are finer than a day"
    return span, "times are days, so all days of the logs count"


def _smallest_holdout(day: date, known: set[date], count: Callable[[date], DayCounts], most: int) -> tuple[int, int]:
    """The fewest days ending at `day` with enough users who have both classes, and how many they are."""
    clicked_U = passed_U = np.empty(0, np.int64)
    num_users = 0
    for num_days in range(1, most + 1):
        if (current := day - timedelta(days=num_days - 1)) not in known:
            continue
        counts = count(current)
        clicked_U, passed_U = np.union1d(clicked_U, counts.clicked_users_U), np.union1d(passed_U, counts.passed_users_U)
        num_users = len(np.intersect1d(clicked_U, passed_U, assume_unique=True))
        if num_users >= ENOUGH_USERS:
            return num_days, num_users
    return most, num_users


def _smallest_training(last: date, known: set[date], count: Callable[[date], DayCounts], most: int) -> tuple[int, int]:
    """The fewest days ending at `last` with enough instances (a non-click a click), and how many they are."""
    num_instances = 0
    for num_days in range(1, most + 1):
        if (current := last - timedelta(days=num_days - 1)) in known:
            num_instances += 2 * count(current).num_clicked
        if num_instances >= ENOUGH_INSTANCES:
            return num_days, num_instances
    return most, num_instances
