"""Effects against plain arithmetic: row by row, and by least squares."""

import math
from typing import Any

import numpy as np
import pytest

from storyrec.ab.effects import CLICKED, DWELL, METRICS, SHOWN, Effect, linearize, measure_effect, ratio

CLICK_RATE, STORIES_VIEWED, DWELL_SECONDS = METRICS


def draw_users(seed: int, *, num_users: int = 400, lift: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums in the test, arms, and sums before it: heavy and light users, whose tastes stay."""
    rng = np.random.default_rng(seed)
    is_treatment_U = rng.random(num_users) < 0.4
    taste_U = 0.2 * np.exp(0.4 * rng.standard_normal(num_users)).clip(max=3)
    diligence_U = np.exp(0.5 * rng.standard_normal(num_users))

    def sums(rate_U: np.ndarray) -> np.ndarray:
        shown_U = 1 + rng.poisson(20 * diligence_U)
        clicked_U = rng.binomial(shown_U, rate_U)
        return np.stack([shown_U, clicked_U, rng.gamma(2.0, 10.0, num_users) * clicked_U], axis=1).astype(float)

    return sums(taste_U * np.where(is_treatment_U, 1 + lift, 1)), is_treatment_U, sums(taste_U)


def known(effect: Effect | None) -> Effect:
    assert effect is not None
    return effect


def test_the_click_rate_has_the_scatter_of_a_regression_with_users_as_clusters() -> None:
    sums_UK, is_treatment_U, _ = draw_users(1)
    effect = known(measure_effect(sums_UK, is_treatment_U, CLICK_RATE))
    rates, variances = [], []
    for arm in (False, True):
        users = [row for row, treated in zip(sums_UK.tolist(), is_treatment_U, strict=True) if treated == arm]
        num_shown, num_clicked = sum(u[SHOWN] for u in users), sum(u[CLICKED] for u in users)
        rate = num_clicked / num_shown
        residuals = [u[CLICKED] * (1 - rate) + (u[SHOWN] - u[CLICKED]) * (0 - rate) for u in users]  # of a user's rows
        n = len(users)
        rates.append(rate)
        variances.append(sum(r * r for r in residuals) / num_shown**2 * n / (n - 1))
    error = math.sqrt(sum(variances))
    assert effect.difference.estimate == pytest.approx(rates[1] - rates[0])
    assert effect.difference.high - effect.difference.estimate == pytest.approx(1.96 * error, rel=0.01)
    assert effect.lift.estimate == pytest.approx(rates[1] / rates[0] - 1)
    assert effect.variance == pytest.approx(sum(v / r**2 for v, r in zip(variances, rates, strict=True)))
    shown = [sums_UK[is_treatment_U == arm, SHOWN].sum() for arm in (False, True)]
    naive = sum(rate * (1 - rate) / num for rate, num in zip(rates, shown, strict=True))
    assert sum(variances) > 1.5 * naive  # impressions of a user are not independent


def test_a_mean_per_user_is_compared_as_welch_does() -> None:
    sums_UK, is_treatment_U, _ = draw_users(2)
    effect = known(measure_effect(sums_UK, is_treatment_U, DWELL_SECONDS))
    control, treatment = sums_UK[~is_treatment_U, DWELL], sums_UK[is_treatment_U, DWELL]
    error = math.sqrt(control.var(ddof=1) / len(control) + treatment.var(ddof=1) / len(treatment))
    assert effect.difference.estimate == pytest.approx(treatment.mean() - control.mean())
    assert effect.difference.estimate - effect.difference.low == pytest.approx(1.96 * error, rel=0.01)


def test_a_lift_and_its_opposite_are_alike() -> None:
    sums_UK, is_treatment_U, _ = draw_users(3)
    for metric in METRICS:
        there = known(measure_effect(sums_UK, is_treatment_U, metric))
        back = known(measure_effect(sums_UK, ~is_treatment_U, metric))
        assert (back.log_lift, back.p_value) == pytest.approx((-there.log_lift, there.p_value))
        assert (1 + there.lift.low) * (1 + back.lift.high) == pytest.approx(1)


def test_cuped_is_the_regression_on_arm_and_values_before() -> None:
    sums_UK, is_treatment_U, before_UK = draw_users(4)
    effect = known(measure_effect(sums_UK, is_treatment_U, STORIES_VIEWED, before_UK=before_UK))
    columns = np.stack([np.ones(len(sums_UK)), is_treatment_U, before_UK[:, CLICKED]], axis=1)
    slopes = np.linalg.lstsq(columns, sums_UK[:, CLICKED], rcond=None)[0]
    assert effect.difference.estimate == pytest.approx(slopes[1])
    plain = known(measure_effect(sums_UK, is_treatment_U, STORIES_VIEWED))
    residuals = sums_UK[:, CLICKED] - columns @ slopes
    narrowing = 1 - (residuals @ residuals) / sum(
        ((arm - arm.mean()) ** 2).sum() for arm in (sums_UK[is_treatment_U, CLICKED], sums_UK[~is_treatment_U, CLICKED])
    )
    assert 1 - effect.variance / plain.variance == pytest.approx(narrowing, abs=0.08)


def test_cuped_takes_the_luck_of_the_draw_away() -> None:
    """The treatment happens to have those who click more; without any effect."""
    sums_UK, _, before_UK = draw_users(5, lift=0.0, num_users=2_000)
    is_treatment_U = before_UK[:, CLICKED] + np.random.default_rng(5).normal(0, 40, 2_000) > 4
    plain = known(measure_effect(sums_UK, is_treatment_U, STORIES_VIEWED))
    adjusted = known(measure_effect(sums_UK, is_treatment_U, STORIES_VIEWED, before_UK=before_UK))
    assert abs(adjusted.lift.estimate) < 0.5 * abs(plain.lift.estimate)
    assert adjusted.variance < 0.95 * plain.variance


def test_values_of_other_users_do_not_narrow() -> None:
    sums_UK, is_treatment_U, before_UK = draw_users(6)
    shuffled_UK = np.random.default_rng(0).permutation(before_UK)
    plain = known(measure_effect(sums_UK, is_treatment_U, CLICK_RATE))
    adjusted = known(measure_effect(sums_UK, is_treatment_U, CLICK_RATE, before_UK=shuffled_UK))
    assert adjusted.variance == pytest.approx(plain.variance, rel=0.03)


def test_linearized_values_have_the_ratio_as_their_mean() -> None:
    numerator_U, denominator_U = np.array([1.0, 0.0, 5.0]), np.array([2.0, 0.0, 8.0])
    assert linearize(numerator_U, denominator_U).mean() == pytest.approx(0.6)
    assert linearize(numerator_U, denominator_U) == pytest.approx([0.6 - 0.2 / (10 / 3), 0.6, 0.6 + 0.2 / (10 / 3)])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sums_UK, arm_U: sums_UK * [1, 0, 0],  # nobody clicks
        lambda sums_UK, arm_U: np.where(arm_U[:, None], sums_UK * [1, 0, 0], sums_UK),  # nobody in one arm does
        lambda sums_UK, arm_U: np.zeros_like(sums_UK),  # nothing was shown
        lambda sums_UK, arm_U: np.ones_like(sums_UK) * [10, 5, 0],  # all are alike
        lambda sums_UK, arm_U: np.where(arm_U[:, None], [10, 4, 0], [10, 5, 0]),  # all of an arm are
    ],
)
def test_nothing_to_compare_is_none(spoil: Any) -> None:
    sums_UK, is_treatment_U, _ = draw_users(7, num_users=50)
    assert measure_effect(spoil(sums_UK, is_treatment_U), is_treatment_U, CLICK_RATE) is None


def test_without_differences_before_nothing_is_adjusted() -> None:
    sums_UK, is_treatment_U, _ = draw_users(8, num_users=50)
    for before_UK in (np.zeros_like(sums_UK), np.ones_like(sums_UK)):
        assert measure_effect(sums_UK, is_treatment_U, CLICK_RATE, before_UK=before_UK) is None


def test_an_arm_of_one_user_is_not_compared() -> None:
    sums_UK, _, _ = draw_users(9, num_users=50)
    assert measure_effect(sums_UK, np.arange(50) == 0, CLICK_RATE) is None
    assert math.isnan(ratio(np.zeros((2, 3)), CLICK_RATE))
