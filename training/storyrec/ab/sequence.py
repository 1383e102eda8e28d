"""Looking at a test every day without fooling oneself: intervals that hold at all looks together.

The mixture sequential probability ratio test: the likelihood of a log lift drawn from N(0, SPREAD^2) against that of
none. Its inverse is a p-value that is valid whenever one looks, and the lifts it does not reject are a confidence
sequence. Robbins: Statistical Methods Related to the Law of the Iterated Logarithm (1970); Johari, Koomen,
Pekelis, Walsh: Always Valid Inference (Operations Research 2022); that it holds for estimates that are only
asymptotically normal: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: Time-Uniform Central Limit Theory and
Asymptotic Confidence Sequences (Annals of Statistics 2024).
"""

import math
from dataclasses import dataclass
from datetime import date

import numpy as np

from storyrec.ab.effects import ALPHA, Booleans, Effect, Floats, Interval, Metric, measure_effect
from storyrec.ab.logs import Observed

SPREAD = 0.05
"""Standard deviation of the mixture, a log lift: near the lifts of Sec. IV-F. It must not depend on the data; the
intervals hold with any, and are tightest where a lift's standard error is a tenth to a half of it."""
MIN_USERS = 100
"""In each arm, for a look: below, estimates are not near normal."""


@dataclass(frozen=True)
class Look:
    """A metric as it stood at the end of a day.

    Attributes:
        day: the last one that counts.
        num_users: that had met the test by then.
        lift: with the interval that is valid if this was the only look.
        sequence: the same lift with the interval that is valid at all looks together.
        p_value: valid at all looks together; the smallest so far.
    """

    day: date
    num_users: int
    lift: Interval
    sequence: Interval
    p_value: float


def look_daily(observed: Observed, metric: Metric) -> tuple[Look, ...]:
    """Look at a metric at the end of each day; days with too few users, or nothing to compare, are left out."""
    sums_UDK = observed.sums_UDK.cumsum(axis=1)
    looks: list[Look] = []
    for place, day in enumerate(observed.days):
        met_U = observed.entry_U <= place
        is_treatment_U = observed.is_treatment_U[met_U]
        if min(is_treatment_U.sum(), (~is_treatment_U).sum()) < MIN_USERS:
            continue
        effect = measure_best(
            sums_UDK[met_U, place],
            is_treatment_U,
            metric,
            before_UK=None if observed.before_UK is None else observed.before_UK[met_U],
        )
        if effect is None:
            continue
        width = half_width(effect.variance)
        bounds = (effect.log_lift, effect.log_lift - width, effect.log_lift + width)
        looks.append(
            Look(
                day=day,
                num_users=int(met_U.sum()),
                lift=effect.lift,
                sequence=Interval(*(float(np.expm1(bound)) for bound in bounds)),
                p_value=min([always_valid_p(effect.log_lift, effect.variance), *(look.p_value for look in looks)]),
            )
        )
    return tuple(looks)


def measure_best(
    sums_UK: Floats, is_treatment_U: Booleans, metric: Metric, *, before_UK: Floats | None
) -> Effect | None:
    """The adjusted effect where there is one, else the plain one."""
    adjusted = None if before_UK is None else measure_effect(sums_UK, is_treatment_U, metric, before_UK=before_UK)
    return adjusted or measure_effect(sums_UK, is_treatment_U, metric)


def half_width(variance: float, *, alpha: float = ALPHA) -> float:
    """Half the width of the confidence sequence, of a log lift with this variance."""
    share = variance / SPREAD**2
    return math.sqrt(variance * (1 + share) * (2 * math.log(1 / alpha) + math.log1p(1 / share)))


def always_valid_p(log_lift: float, variance: float) -> float:
    """The inverse of the mixture's likelihood ratio, at most 1."""
    share = variance / SPREAD**2
    log_ratio = (log_lift**2 / (variance * (1 + share)) - math.log1p(1 / share)) / 2
    return math.exp(-max(log_ratio, 0.0))
