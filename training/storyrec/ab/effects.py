"""What a test measures of its users, and how much the arms differ in it.

Users are what was drawn at random, so all scatter is that between users: a ratio of two sums becomes one value per
user by the delta method, and those values are compared by Welch's t-test. Lifts are compared as logarithms, which
makes a lift and its opposite alike.

Deng, Knoblich, Lu: Applying the Delta Method in Metric Analytics (KDD 2018). CUPED: Deng, Xu, Kohavi, Walker:
Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data (WSDM 2013).

Shapes: U = users, K = SHOWN, CLICKED, DWELL.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

SHOWN, CLICKED, DWELL = range(3)
ALPHA = 0.05
"""Of every interval and every decision."""


@dataclass(frozen=True)
class Metric:
    """A ratio of two sums over users.

    Attributes:
        name: in files.
        label: for people.
        numerator: one of SHOWN, CLICKED, DWELL.
        denominator: another one; None: the number of users.
        unit: "share", or what is counted.
    """

    name: str
    label: str
    numerator: int
    denominator: int | None
    unit: Literal["share", "stories", "seconds"]


METRICS = (
    Metric("click_rate", "click rate", CLICKED, SHOWN, "share"),
    Metric("stories_viewed", "stories viewed per user", CLICKED, None, "stories"),
    Metric("dwell_seconds", "dwell time per user", DWELL, None, "seconds"),
)


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Effect:
    """How much the treatment differs from the control in one metric.

    Attributes:
        lift: treatment / control - 1.
        difference: treatment - control, in the metric's unit.
        p_value: two-sided, of no lift.
        log_lift: log(treatment / control).
        variance: of `log_lift`.
    """

    lift: Interval
    difference: Interval
    p_value: float
    log_lift: float
    variance: float


def parts(sums_UK: Floats, metric: Metric) -> tuple[Floats, Floats]:
    """Numerator and denominator of every user, [U] each."""
    denominator_U = np.ones(len(sums_UK)) if metric.denominator is None else sums_UK[:, metric.denominator]
    return sums_UK[:, metric.numerator], denominator_U


def ratio(sums_UK: Floats, metric: Metric) -> float:
    """The metric over all of some users; NaN if its denominator is zero."""
    numerator_U, denominator_U = parts(sums_UK, metric)
    total = denominator_U.sum()
    return float(numerator_U.sum() / total) if total else float("nan")


def linearize(numerator_U: Floats, denominator_U: Floats) -> Floats:
    """One value per user, whose mean is the ratio of the sums and whose scatter is the ratio's (delta method), [U]."""
    whole = numerator_U.sum() / denominator_U.sum()
    values_U: Floats = whole + (numerator_U - whole * denominator_U) / denominator_U.mean()
    return values_U


def measure_effect(
    sums_UK: Floats, is_treatment_U: Booleans, metric: Metric, *, before_UK: Floats | None = None
) -> Effect | None:
    """Compare the arms.

    Args:
        sums_UK: what each user was shown, clicked and spent, [U, K].
        is_treatment_U: each user's arm, [U].
        metric: what to compare.
        before_UK: the same sums before the test; with them values are adjusted (CUPED).

    Returns:
        None where there is nothing to compare: an arm's metric is zero or undefined, or all users of an arm have the
        same value; with `before_UK`, also where they had so before the test.
    """
    arms = [sums_UK[~is_treatment_U], sums_UK[is_treatment_U]]
    if not all(len(arm) > 1 and ratio(arm, metric) > 0 for arm in arms):
        return None
    values_U, logs_U = np.empty(len(sums_UK)), np.empty(len(sums_UK))
    for arm, mine_U in zip(arms, (~is_treatment_U, is_treatment_U), strict=True):
        whole = ratio(arm, metric)
        values_U[mine_U] = linearize(*parts(arm, metric))
        logs_U[mine_U] = np.log(whole) + values_U[mine_U] / whole - 1
    if not _scatters(values_U, is_treatment_U):
        return None
    if before_UK is not None:
        numerator_U, denominator_U = parts(before_UK, metric)
        if not denominator_U.any():
            return None
        covariate_U = linearize(numerator_U, denominator_U)
        if not _scatters(covariate_U, is_treatment_U):
            return None
        values_U, logs_U = (adjust(some, covariate_U, is_treatment_U) for some in (values_U, logs_U))
    difference, _ = _compare(values_U, is_treatment_U)
    log_lift, p_value = _compare(logs_U, is_treatment_U)
    return Effect(
        lift=Interval(*(float(np.expm1(edge)) for edge in (log_lift.estimate, log_lift.low, log_lift.high))),
        difference=difference,
        p_value=p_value,
        log_lift=log_lift.estimate,
        variance=float(stats.sem(logs_U[is_treatment_U]) ** 2 + stats.sem(logs_U[~is_treatment_U]) ** 2),
    )


def adjust(values_U: Floats, covariate_U: Floats, is_treatment_U: Booleans) -> Floats:
    """Take away what the covariate explains of the values within the arms (CUPED), [U].

    The slope is the one that least squares give it beside the arm.
    """
    within, known = (_centred(some, is_treatment_U) for some in (values_U, covariate_U))
    adjusted_U: Floats = values_U - (within @ known) / (known @ known) * (covariate_U - covariate_U.mean())
    return adjusted_U


def _scatters(values_U: Floats, is_treatment_U: Booleans) -> bool:
    return not any(np.allclose(arm, arm[0]) for arm in (values_U[is_treatment_U], values_U[~is_treatment_U]))


def _centred(values_U: Floats, is_treatment_U: Booleans) -> Floats:
    return values_U - np.where(is_treatment_U, values_U[is_treatment_U].mean(), values_U[~is_treatment_U].mean())


def _compare(values_U: Floats, is_treatment_U: Booleans) -> tuple[Interval, float]:
    treatment, control = values_U[is_treatment_U], values_U[~is_treatment_U]
    found = stats.ttest_ind(treatment, control, equal_var=False)
    bounds = found.confidence_interval(1 - ALPHA)
    estimate = treatment.mean() - control.mean()
    return Interval(float(estimate), float(bounds.low), float(bounds.high)), float(found.pvalue)
