"""`storyrec ab analyze`: is the treatment better, how sure is that, and may the test be trusted at all?

Paper: Sec. IV-F.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from storyrec.ab.effects import METRICS, Effect, Floats, Metric, measure_effect, parts, ratio
from storyrec.ab.left_out import Counted
from storyrec.ab.logs import Observed, read_test
from storyrec.ab.sample_ratio import SampleRatio, check_ratio
from storyrec.ab.sequence import MIN_USERS, Look, look_daily
from storyrec.ab.verdict import Verdict, conclude
from storyrec.progress import track

WEEK = 7
MAX_P_BEFORE = 0.001
"""Below, the arms differed before the test."""
NUM_BINS = 30
SHOWN_SHARE = 0.99
"""Of the users, in the picture of their values; the last bin holds the others."""


@dataclass(frozen=True)
class Distribution:
    """How many users of each arm have a value between two edges, [B + 1] and [B] each."""

    edges: tuple[float, ...]
    control: tuple[int, ...]
    treatment: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """All there is to say of a metric.

    Attributes:
        metric: which one.
        control, treatment: its value in each arm; None where it has none.
        effect: at the end of the test; None where there is nothing to compare.
        adjusted: the same with the users' values before the test taken into account (CUPED); None without them.
        before: the difference before the test, which must be chance; None without a log of then.
        looks: day by day, of the adjusted effect where there is one.
        distribution: users by their own value; None where nobody has one.
    """

    metric: Metric
    control: float | None
    treatment: float | None
    effect: Effect | None
    adjusted: Effect | None
    before: Effect | None
    looks: tuple[Look, ...]
    distribution: Distribution | None

    @property
    def best(self) -> Effect | None:
        """The effect to decide by."""
        return self.adjusted or self.effect

    @property
    def narrowing(self) -> float | None:
        """By what share CUPED lowered the variance."""
        if self.effect is None or self.adjusted is None:
            return None
        return 1 - self.adjusted.variance / self.effect.variance


@dataclass(frozen=True)
class Analysis:
    """A test as it stands.

    Attributes:
        days: of the test, UTC.
        sample_ratio: users by arm against the plan.
        metrics: those that were measured.
        verdict: what follows.
        warnings: what speaks against trusting it, worst first.
        counts: rows and users that were left out.
    """

    days: tuple[date, ...]
    sample_ratio: SampleRatio
    metrics: tuple[Measured, ...]
    verdict: Verdict
    warnings: tuple[str, ...]
    counts: tuple[Counted, ...]


def analyze(exposures: Path, outcomes: Path, *, before: Path | None = None, treatment_share: float = 0.5) -> Analysis:
    """Analyze a test from its logs.

    Args:
        exposures, outcomes, before: as `read_test` takes them.
        treatment_share: of the users that were to get the treatment, in (0, 1).

    Raises:
        DataError: as `read_test` does.
    """
    with track("analyze", total=2) as progress:
        progress.advance(note="logs")
        observed = read_test(exposures, outcomes, before=before)
        progress.advance(note="metrics")
        return judge(observed, treatment_share=treatment_share)


def judge(observed: Observed, *, treatment_share: float = 0.5) -> Analysis:
    """Analyze what a test saw."""
    sample_ratio = check_ratio(
        observed.is_treatment_U, observed.entry_U, num_days=len(observed.days), treatment_share=treatment_share
    )
    metrics = tuple(_measure(observed, metric) for metric in METRICS if metric.unit != "seconds" or observed.has_dwell)
    return Analysis(
        days=observed.days,
        sample_ratio=sample_ratio,
        metrics=metrics,
        verdict=conclude(metrics, is_mismatch=sample_ratio.is_mismatch),
        warnings=tuple(_warnings(observed, sample_ratio, metrics)),
        counts=observed.counts,
    )


def _measure(observed: Observed, metric: Metric) -> Measured:
    sums_UK, is_treatment_U, before_UK = observed.sums_UDK.sum(axis=1), observed.is_treatment_U, observed.before_UK
    control, treatment = (ratio(sums_UK[mine_U], metric) for mine_U in (~is_treatment_U, is_treatment_U))
    return Measured(
        metric=metric,
        control=None if np.isnan(control) else control,
        treatment=None if np.isnan(treatment) else treatment,
        effect=measure_effect(sums_UK, is_treatment_U, metric),
        adjusted=None if before_UK is None else measure_effect(sums_UK, is_treatment_U, metric, before_UK=before_UK),
        before=None if before_UK is None else measure_effect(before_UK, is_treatment_U, metric),
        looks=look_daily(observed, metric),
        distribution=_distribution(sums_UK, observed, metric),
    )


def _distribution(sums_UK: Floats, observed: Observed, metric: Metric) -> Distribution | None:
    numerator_U, denominator_U = parts(sums_UK, metric)
    has_U = denominator_U > 0
    if not has_U.any():
        return None
    values_U = numerator_U[has_U] / denominator_U[has_U]
    highest = float(np.quantile(values_U, SHOWN_SHARE)) or float(values_U.max()) or 1.0
    edges = np.linspace(0, highest, NUM_BINS + 1)
    arm_U = observed.is_treatment_U[has_U]
    control, treatment = (np.histogram(values_U[arm].clip(max=highest), edges)[0] for arm in (~arm_U, arm_U))
    return Distribution(tuple(edges.tolist()), tuple(control.tolist()), tuple(treatment.tolist()))


def _warnings(observed: Observed, sample_ratio: SampleRatio, metrics: tuple[Measured, ...]) -> list[str]:
    found = []
    if sample_ratio.is_mismatch:
        found.append(
            f"Sample-ratio mismatch: {sample_ratio.num_control:,} users in the control and "
            f"{sample_ratio.num_treatment:,} in the treatment, where {sample_ratio.treatment_share:.0%} were to get "
            f"the treatment (p = {sample_ratio.p_value:.1g}). Users were lost or added in one arm: do not "
            "trust the rest until the cause is found."
        )
    found += [
        f"The arms differed in {measured.metric.label} before the test already: {measured.before.lift.estimate:+.1%} "
        f"(p = {measured.before.p_value:.1g}). Look at how users were assigned."
        for measured in metrics
        if measured.before is not None and measured.before.p_value < MAX_P_BEFORE
    ]
    if observed.share_in_both:
        found.append(f"{observed.share_in_both:.2%} of the users were in both arms and are left out.")
    if min(sample_ratio.num_control, sample_ratio.num_treatment) < MIN_USERS:
        found.append(f"An arm has fewer than {MIN_USERS} users: the intervals are rough and no day could be looked at.")
    if len(observed.days) < WEEK:
        found.append(
            f"The test ran for {len(observed.days)} days only, and other weekdays may differ: what is recommended is "
            "of these days. Where weekdays matter, let it run for whole weeks first."
        )
    found += [
        f"Nothing can be said of {measured.metric.label}: an arm has none of it, or all users have the same."
        for measured in metrics
        if measured.effect is None
    ]
    return found
