"""How often the analysis is right, over many tests whose effect is known.

An alarm is a test that shows a lift. Without one (an A/A test) the usual intervals alarm in ALPHA of the tests, the
confidence sequence in at most ALPHA over all its looks together.
"""

from dataclasses import dataclass

import numpy as np

from storyrec.ab.effects import ALPHA, METRICS, Interval, Metric, measure_effect
from storyrec.ab.sequence import look_daily
from storyrec.ab.simulate import World, draw_test, observe
from storyrec.progress import track


@dataclass(frozen=True)
class Trials:
    """What became of one metric in many tests; shares of the tests in [0, 1].

    Attributes:
        metric: which one.
        repetitions, num_users, num_days: tests; users and days of each.
        lift: the true one.
        mean_lift: of the plain estimates.
        alarms, adjusted_alarms: at the end, plain and by CUPED.
        daily_alarms: by the confidence sequence, at any look.
        peeking_alarms: by the interval of a single look, at any look: what not to do.
        covered, adjusted_covered, daily_covered: the true lift lies in the interval at the end.
        narrowing: share of the variance that CUPED takes away, mean.
    """

    metric: Metric
    repetitions: int
    num_users: int
    num_days: int
    lift: float
    mean_lift: float
    alarms: float
    adjusted_alarms: float
    daily_alarms: float
    peeking_alarms: float
    covered: float
    adjusted_covered: float
    daily_covered: float
    narrowing: float


def run_trials(world: World, *, repetitions: int, seed: int) -> tuple[Trials, ...]:
    """Draw tests and analyze each."""
    lifts = world.lifts
    found: dict[Metric, list[tuple[float, ...]]] = {metric: [] for metric in METRICS}
    with track("trials", total=repetitions) as progress:
        for number in range(repetitions):
            observed = observe(world, draw_test(world, rng=np.random.default_rng([seed, 2, number])))
            sums_UK, arm_U = observed.sums_UDK.sum(axis=1), observed.is_treatment_U
            for metric in METRICS:
                plain = measure_effect(sums_UK, arm_U, metric)
                adjusted = measure_effect(sums_UK, arm_U, metric, before_UK=observed.before_UK)
                looks = look_daily(observed, metric)
                assert plain is not None
                assert adjusted is not None
                lift = lifts[metric.name]
                found[metric].append(
                    (
                        plain.lift.estimate,
                        plain.p_value <= ALPHA,
                        adjusted.p_value <= ALPHA,
                        looks[-1].p_value <= ALPHA,
                        any(not _holds(look.lift, 0.0) for look in looks),
                        _holds(plain.lift, lift),
                        _holds(adjusted.lift, lift),
                        _holds(looks[-1].sequence, lift),
                        1 - adjusted.variance / plain.variance,
                    )
                )
            progress.advance()
    return tuple(
        Trials(
            metric, repetitions, len(world.user_ids_U), world.last_day - world.start_day + 1, lifts[metric.name], *means
        )
        for metric, rows in found.items()
        if (means := np.mean(rows, axis=0).tolist())
    )


def _holds(interval: Interval, lift: float) -> bool:
    return interval.low <= lift <= interval.high
