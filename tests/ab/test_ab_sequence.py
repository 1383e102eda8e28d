"""The daily picture: the mixture's formula, and how often looking every day errs."""

import math
from collections.abc import Iterator
from datetime import date

import numpy as np
import pytest
from drawn_days import draw_days, observed_of
from scipy import integrate, stats

from storyrec.ab.effects import ALPHA, METRICS, measure_effect
from storyrec.ab.sequence import MIN_USERS, SPREAD, always_valid_p, half_width, look_daily

CLICK_RATE, STORIES_VIEWED, _ = METRICS
REPETITIONS = 200


@pytest.mark.parametrize(("log_lift", "variance"), [(0.04, 1e-4), (-0.09, 4e-4), (0.3, 0.01)])
def test_the_p_value_is_the_inverse_of_the_mixture_over_all_lifts(log_lift: float, variance: float) -> None:
    error = math.sqrt(variance)
    mixed = integrate.quad(
        lambda lift: stats.norm.pdf(log_lift, lift, error) * stats.norm.pdf(lift, 0, SPREAD),
        -2,
        2,
        points=[0, log_lift],
    )[0]
    expected = min(1.0, stats.norm.pdf(log_lift, 0, error) / mixed)
    assert always_valid_p(log_lift, variance) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variance", [1e-6, 1e-4, 1e-2])
def test_the_interval_ends_where_the_p_value_is_alpha(variance: float) -> None:
    assert always_valid_p(half_width(variance), variance) == pytest.approx(ALPHA)
    assert half_width(variance) > 1.96 * math.sqrt(variance)
    assert always_valid_p(0.0, variance) == 1


def test_each_look_has_what_was_there_by_then() -> None:
    rng = np.random.default_rng(3)
    sums_UDK, arm_U = draw_days(rng, num_users=600, num_days=4), rng.random(600) < 0.5
    entry_U = rng.integers(0, 4, 600)
    sums_UDK[np.arange(4) < entry_U[:, None]] = 0
    looks = look_daily(observed_of(sums_UDK, arm_U, entry_U=entry_U), STORIES_VIEWED)
    met_U = entry_U <= 2
    expected = measure_effect(sums_UDK[met_U, :3].sum(axis=1), arm_U[met_U], STORIES_VIEWED)
    assert expected is not None
    assert [look.num_users for look in looks] == [int((entry_U <= day).sum()) for day in (1, 2, 3)]
    look = looks[-2]
    assert (look.day, look.lift) == (date(2026, 3, 3), expected.lift)
    width = half_width(expected.variance)
    assert look.sequence.low == pytest.approx(math.exp(expected.log_lift - width) - 1)
    assert [look.p_value for look in looks] == sorted((look.p_value for look in looks), reverse=True)


def test_days_with_few_users_are_not_looked_at() -> None:
    rng = np.random.default_rng(4)
    sums_UDK = draw_days(rng, num_users=2 * MIN_USERS, num_days=3)
    arm_U = np.arange(2 * MIN_USERS) % 2 == 0
    entry_U = np.where(np.arange(2 * MIN_USERS) < 2, 1, 0)
    looks = look_daily(observed_of(sums_UDK, arm_U, entry_U=entry_U), CLICK_RATE)
    assert [look.day for look in looks] == [date(2026, 3, 2), date(2026, 3, 3)]


def test_false_alarms_of_tests_without_an_effect() -> None:
    """One look errs in 5 % of the tests, six in more, the confidence sequence in fewer at all together."""
    at_end, peeking, daily = np.mean([*_alarms()], axis=0)
    assert 0.02 <= at_end <= 0.085  # 2.5 standard errors around .05
    assert peeking > 1.5 * ALPHA
    assert daily <= ALPHA


def _alarms() -> Iterator[tuple[bool, bool, bool]]:
    rng = np.random.default_rng(1)
    for _ in range(REPETITIONS):
        sums_UDK, arm_U = draw_days(rng, num_users=300, num_days=6), rng.permutation(np.arange(300) % 2 == 0)
        looks = look_daily(observed_of(sums_UDK, arm_U), CLICK_RATE)
        assert len(looks) == 6
        outside = [not look.lift.low <= 0 <= look.lift.high for look in looks]
        yield outside[-1], any(outside), looks[-1].p_value <= ALPHA
