"""`storyrec ab plan`: how many users, or days, a test needs to find a difference.

A day's users and their scatter are taken from a log of the past. n = (z_{1 - alpha/2} + z_{power})^2 cv^2 /
(s (1 - s)) / log(1 + lift)^2 users for a test that is looked at once, cv a user's value's standard deviation over its
mean, s the treatment's share. Kohavi, Tang, Xu: Trustworthy Online Controlled Experiments (2020), ch. 15.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from storyrec.ab.effects import ALPHA, METRICS, Metric, linearize, parts
from storyrec.ab.logs import Observed, read_usage
from storyrec.ab.sequence import half_width
from storyrec.errors import ConfigError


@dataclass(frozen=True)
class Planned:
    """A test of some days.

    Attributes:
        metric: what is to differ.
        num_days: of the test.
        num_users: that come in these days, in the log.
        variation: standard deviation of a user's value over its mean.
        detectable: the smallest lift that such a test finds with the power, looked at once.
        detectable_daily: the same by the confidence sequence, at its last look alone.
        users_needed: for the lift that was asked for, in a test of these days.
    """

    metric: Metric
    num_days: int
    num_users: int
    variation: float
    detectable: float
    detectable_daily: float
    users_needed: int


def plan(outcomes: Path, *, lift: float, power: float, treatment_share: float) -> tuple[Planned, ...]:
    """Plan tests of one day up to all days of a log.

    Args:
        outcomes: a log without a test, as `read_usage` takes it.
        lift: relative difference to find, such as .02; finite, not 0, above -1.
        power: probability to find it, in (0, 1).
        treatment_share: of the users, in (0, 1).

    Raises:
        ConfigError: the lift is 0 or not finite.
        DataError: as `read_usage` does.
    """
    if lift == 0 or not math.isfinite(lift):
        raise ConfigError(
            f"no test finds a lift of {lift:g}",
            expected="a relative difference, such as 0.02 for 2 %",
            where="--lift",
            remedy="name the smallest lift that would matter",
        )
    observed = read_usage(outcomes)
    return tuple(
        planned
        for metric in METRICS
        if metric.unit != "seconds" or observed.has_dwell
        for num_days in range(1, len(observed.days) + 1)
        if (planned := _plan(observed, metric, num_days, lift=lift, power=power, treatment_share=treatment_share))
    )


def find_lift(variance: float, *, power: float) -> float:
    """The smallest lift that a log lift with this variance shows with the power, looked at once."""
    return math.expm1(math.sqrt(variance) * _quantiles(power))


def find_users(lift: float, *, variation: float, power: float, treatment_share: float) -> int:
    """Users of both arms together that show a lift with the power, looked at once."""
    split = treatment_share * (1 - treatment_share)
    return math.ceil((_quantiles(power) * variation / math.log1p(lift)) ** 2 / split)


def _plan(
    observed: Observed, metric: Metric, num_days: int, *, lift: float, power: float, treatment_share: float
) -> Planned | None:
    sums_UK = observed.sums_UDK[observed.entry_U < num_days, :num_days].sum(axis=1)
    numerator_U, denominator_U = parts(sums_UK, metric)
    if len(sums_UK) < 2 or numerator_U.sum() == 0:
        return None
    values_U = linearize(numerator_U, denominator_U)
    variation = float(values_U.std(ddof=1) / values_U.mean())
    if variation == 0:
        return None
    variance = variation**2 / len(values_U) / (treatment_share * (1 - treatment_share))
    return Planned(
        metric=metric,
        num_days=num_days,
        num_users=len(values_U),
        variation=variation,
        detectable=find_lift(variance, power=power),
        detectable_daily=math.expm1(half_width(variance) + math.sqrt(variance) * float(stats.norm.ppf(power))),
        users_needed=find_users(lift, variation=variation, power=power, treatment_share=treatment_share),
    )


def _quantiles(power: float) -> float:
    return float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(power))
