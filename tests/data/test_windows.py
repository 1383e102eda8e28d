"""Windows resolved on made-up counts of days, where the answers can be counted on the fingers."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from storyrec.data.windows import DayCounts, ResolvedWindows, resolve_windows
from storyrec.errors import DataError

FIRST = date(2026, 3, 1)


class Profile:
    """Every day has the same number of clicks; user ids count on from day to day."""

    def __init__(
        self, num_days: int, *, clicks: int, users: int, is_fine: bool, leave_out: tuple[int, ...] = ()
    ) -> None:
        self.days = [FIRST + timedelta(days=n) for n in range(num_days) if n not in leave_out]
        self.asked: list[date] = []
        self._clicks, self._users, self._is_fine = clicks, users, is_fine

    def count(self, day: date) -> DayCounts:
        assert day in self.days
        self.asked.append(day)
        users_U = (day - FIRST).days * self._users + np.arange(self._users)
        return DayCounts(self._clicks, users_U, users_U, self._is_fine)

    def resolve(self, **settings: Any) -> ResolvedWindows:
        return resolve_windows(
            day=self.days[-1], days=self.days, count=self.count, num_time_blocks=168, validation_share=0.1, **settings
        )


def numbers(windows: ResolvedWindows) -> dict[str, int]:
    names = ("history_days", "training_days", "holdout_days", "block_hours")
    return {name: getattr(windows, name) for name in names}


def test_marketplace_with_hours() -> None:
    # ten days of 40,000 clicks: three training days give 240,000 instances, one held-out day enough users
    profile = Profile(10, clicks=40_000, users=5_000, is_fine=True)
    windows = profile.resolve()
    assert numbers(windows) == {"history_days": 7, "training_days": 3, "holdout_days": 1, "block_hours": 1}
    assert windows.holdout_start(profile.days[-1]) == date(2026, 3, 10)
    assert windows.training_start(profile.days[-1]) == date(2026, 3, 7)
    assert windows.history_start(profile.days[-1]) == date(2026, 2, 28)
    assert min(profile.asked) == date(2026, 3, 7), "days that decide nothing are not read"


def test_reviews_with_days_only() -> None:
    # ten users and ten clicks a day over ten years
    windows = Profile(3_650, clicks=10, users=10, is_fine=False).resolve()
    assert numbers(windows) == {"history_days": 3_650, "training_days": 3_550, "holdout_days": 100, "block_hours": 672}


def test_a_short_log_with_hours_leaves_half_of_its_days_as_history() -> None:
    assert Profile(10, clicks=1, users=5_000, is_fine=True).resolve().training_days == 5
    assert Profile(30, clicks=1, users=5_000, is_fine=True).resolve().training_days == 22
    assert Profile(2, clicks=1, users=5_000, is_fine=True).resolve().training_days == 1


def test_holdout_days_are_at_most_a_third_and_at_least_one() -> None:
    assert Profile(10, clicks=1, users=1, is_fine=True).resolve().holdout_days == 3
    assert Profile(2, clicks=1, users=1, is_fine=True).resolve().holdout_days == 1


def test_holdout_users_need_both_classes_in_any_of_the_days() -> None:
    users_U = np.arange(1_000)

    def count(day: date) -> DayCounts:
        clicked = (FIRST + timedelta(days=9) - day).days % 2 == 0
        nobody_U = users_U[:0]
        return DayCounts(1, users_U if clicked else nobody_U, nobody_U if clicked else users_U, True)

    assert _resolve(count).holdout_days == 2


def test_days_that_are_not_there_count_as_calendar_days() -> None:
    windows = Profile(10, clicks=60_000, users=400, is_fine=True, leave_out=(6, 8)).resolve()
    assert windows.holdout_days == 3  # days 9, 7 have 400 each, day 8 none; a third of ten is the limit
    assert windows.training_days == 3  # days 6 (not there), 5, 4


@pytest.mark.parametrize(
    ("history_days", "block_hours"), [(1, 1), (7, 1), (8, 24), (168, 24), (169, 168), (1_177, 672), (90_000, 672)]
)
def test_block_hours_are_the_smallest_that_cover_the_history(history_days: int, block_hours: int) -> None:
    profile = Profile(10, clicks=40_000, users=5_000, is_fine=True)
    assert profile.resolve(history_days=history_days).block_hours == block_hours


def test_settings_win_and_the_reasons_say_so() -> None:
    profile = Profile(10, clicks=40_000, users=5_000, is_fine=True)
    windows = profile.resolve(history_days=2, training_days=4, holdout_days=2, block_hours=12)
    assert numbers(windows) == {"history_days": 2, "training_days": 4, "holdout_days": 2, "block_hours": 12}
    assert len(windows.reasons) == 4
    assert all("as the settings say" in reason for reason in windows.reasons)
    assert profile.resolve(training_days=400).training_days == 9
    assert "240000 training instances" in profile.resolve().reasons[1]


def test_no_day_to_train_on() -> None:
    with pytest.raises(DataError, match="no validated day lies before"):
        Profile(1, clicks=1, users=1, is_fine=True).resolve()
    with pytest.raises(DataError, match="10 held-out"):
        Profile(10, clicks=1, users=1, is_fine=True).resolve(holdout_days=10)


def _resolve(count: Callable[[date], DayCounts]) -> ResolvedWindows:
    days = [FIRST + timedelta(days=n) for n in range(10)]
    return resolve_windows(day=days[-1], days=days, count=count, num_time_blocks=168, validation_share=0.1)
