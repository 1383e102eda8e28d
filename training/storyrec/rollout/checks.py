"""Does a canary serve as well as the champion does? Errors, latency and the spread of the scores, side by side.

The gate has judged how well it ranks; here speaks what only traffic shows. Suffixes: A answers, K scores.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.config import Rollout
from storyrec.gate.stability import population_stability
from storyrec.gate.verdict import Rule

PERCENTILE = 95
NUM_DEVIATIONS = 4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Arm:
    """What one bundle answered.

    Attributes:
        num_requests: that it was to answer.
        num_errors: of these, requests that it could not answer, and the champion answered instead.
        latency_ms_A: of scoring each answer, milliseconds.
        scores_K: of the answers' candidates, in a row.
    """

    num_requests: int
    num_errors: int
    latency_ms_A: Floats
    scores_K: Floats

    @property
    def num_answers(self) -> int:
        """Requests that it answered."""
        return self.num_requests - self.num_errors


@dataclass(frozen=True)
class CanaryLimits:
    """What a canary must keep to.

    Attributes:
        min_requests: answered by each arm; with fewer nothing is judged but errors.
        max_error_rate: of the canary's requests.
        max_latency_ratio: 95 % of the answers within so many times the champion's 95th percentile.
        max_drift: population stability index of the scores against the champion's.
    """

    min_requests: int
    max_error_rate: float
    max_latency_ratio: float
    max_drift: float


def canary_limits(settings: Rollout) -> CanaryLimits:
    """The limits that the settings name."""
    return CanaryLimits(
        min_requests=settings.min_requests,
        max_error_rate=settings.max_error_rate,
        max_latency_ratio=settings.max_latency_ratio,
        max_drift=settings.max_drift,
    )


def judge_canary(champion: Arm, canary: Arm, *, limits: CanaryLimits, is_shadow: bool) -> tuple[Rule, ...]:
    """The rules as they were judged; a rule that cannot be judged yet holds, as its reason says.

    Args:
        champion, canary: what they answered.
        limits: what the canary must keep to.
        is_shadow: whether nobody waits for the canary's answers: they yield to the requests, so latency says nothing.
    """
    is_enough = min(champion.num_answers, canary.num_answers) >= limits.min_requests
    rules = [_errors(canary, limits)]
    for judge in (_drift,) if is_shadow else (_latency, _drift):
        rules.append(
            judge(champion, canary, limits) if is_enough else _too_few(judge.__name__.strip("_"), canary, limits)
        )
    return tuple(rules)


def _errors(canary: Arm, limits: CanaryLimits) -> Rule:
    # so many that the rate could not be met any more within the requests that are asked for
    allowed = limits.max_error_rate * max(canary.num_requests, limits.min_requests)
    passed = canary.num_errors <= allowed
    reason = f"{canary.num_errors:,} of {canary.num_requests:,} requests failed, {allowed:,.0f} may"
    figures = {"num_errors": canary.num_errors, "num_requests": canary.num_requests}
    return Rule("errors", passed, figures, limits.max_error_rate, reason)


def _latency(champion: Arm, canary: Arm, limits: CanaryLimits) -> Rule:
    before = float(np.percentile(champion.latency_ms_A, PERCENTILE))
    allowed, slower = before * limits.max_latency_ratio, 1 - PERCENTILE / 100
    share = float((canary.latency_ms_A > allowed).mean())
    # so many more that chance would hardly do it, however often this is looked at
    most = slower + NUM_DEVIATIONS * math.sqrt(slower * (1 - slower) / len(canary.latency_ms_A))
    reason = (
        f"{share:.1%} of the answers took longer than {allowed:.1f} ms, {limits.max_latency_ratio:g} times what "
        f"{PERCENTILE} % of the champion's took ({most:.1%} may)"
    )
    figures = {"champion_ms": before, "allowed_ms": allowed, "slower_share": share}
    return Rule("latency", share <= most, figures, most, reason)


def _drift(champion: Arm, canary: Arm, limits: CanaryLimits) -> Rule:
    drift = population_stability(champion.scores_K, canary.scores_K)
    means = {"champion_mean": float(champion.scores_K.mean()), "canary_mean": float(canary.scores_K.mean())}
    reason = (
        f"stability index of the scores {drift:.3f}, mean {means['canary_mean']:.3f} against the champion's "
        f"{means['champion_mean']:.3f} (the index may be {limits.max_drift:g})"
    )
    return Rule("drift", drift <= limits.max_drift, {"drift": drift, **means}, limits.max_drift, reason)


def _too_few(name: str, canary: Arm, limits: CanaryLimits) -> Rule:
    reason = f"{canary.num_answers:,} answers of the canary, too few to be judged (it takes {limits.min_requests:,})"
    return Rule(name, True, {"num_answers": canary.num_answers}, None, reason)
