"""A canary's traffic against the champion's: each rule holds and falls where it should."""

from dataclasses import replace

import numpy as np
import pytest

from storyrec.rollout.checks import Arm, CanaryLimits, judge_canary
from storyrec.rollout.traffic import NUM_KEPT, Traffic

LIMITS = CanaryLimits(min_requests=100, max_error_rate=0.02, max_latency_ratio=1.5, max_drift=0.25)


def arm(
    num: int = 1_000, *, num_errors: int = 0, latency_ms: float = 10.0, shift: float = 0.0, scores: bool = True
) -> Arm:
    generator = np.random.default_rng(num)
    scores_K = 1 / (1 + np.exp(-(generator.normal(-1.5 + shift, 1.0, size=5 * num)))) if scores else np.empty(0)
    return Arm(num, num_errors, latency_ms * generator.lognormal(0, 0.1, num - num_errors), scores_K)


def failed(champion: Arm, canary: Arm) -> list[str]:
    rules = judge_canary(champion, canary, limits=LIMITS, is_shadow=False)
    assert [rule.name for rule in rules] == ["errors", "latency", "drift"]
    return [rule.name for rule in rules if not rule.passed]


def test_an_equal_canary_holds() -> None:
    assert failed(arm(1_000), arm(900)) == []


@pytest.mark.parametrize(
    ("canary", "names"),
    [
        (arm(900, num_errors=18), []),
        (arm(900, num_errors=19), ["errors"]),
        (arm(900, latency_ms=14), []),
        (arm(900, latency_ms=16), ["latency"]),
        (arm(900, latency_ms=5), []),
        (arm(900, shift=0.2), []),
        (arm(900, shift=1.0), ["drift"]),
        (arm(900, num_errors=900, scores=False), ["errors"]),
    ],
)
def test_each_rule_falls_beyond_its_limit(canary: Arm, names: list[str]) -> None:
    assert failed(arm(1_000), canary) == names


def test_two_slow_answers_of_thirty_are_chance() -> None:
    champion = arm(1_000)
    for num_slow, holds in ((2, True), (20, False)):
        latency_ms_A = np.full(30, 10.0)
        latency_ms_A[:num_slow] = 50
        canary = Arm(30, 0, latency_ms_A, champion.scores_K)
        limits = replace(LIMITS, min_requests=30)
        latency = judge_canary(champion, canary, limits=limits, is_shadow=False)[1]
        assert (latency.name, latency.passed) == ("latency", holds)


def test_a_shadow_is_not_judged_by_its_latency() -> None:
    slow = judge_canary(arm(1_000), arm(900, latency_ms=100), limits=LIMITS, is_shadow=True)
    assert [(rule.name, rule.passed) for rule in slow] == [("errors", True), ("drift", True)]
    drifted = judge_canary(arm(1_000), arm(900, shift=1.0), limits=LIMITS, is_shadow=True)
    assert [rule.name for rule in drifted if not rule.passed] == ["drift"]


def test_few_requests_are_judged_by_their_errors_alone() -> None:
    bad = {"latency_ms": 100.0, "shift": 3.0}
    assert failed(arm(1_000), arm(99, **bad)) == []
    assert failed(arm(99), arm(1_000, **bad)) == []
    assert failed(arm(100), arm(100, **bad)) == ["latency", "drift"]
    assert failed(arm(1_000), arm(50, num_errors=2)) == []  # of the hundred that it takes, two may fail
    assert failed(arm(1_000), arm(50, num_errors=3)) == ["errors"]
    assert failed(Arm(0, 0, np.empty(0), np.empty(0)), Arm(0, 0, np.empty(0), np.empty(0))) == []


def test_of_many_answers_late_ones_are_judged_as_early_ones() -> None:
    traffic = Traffic(champion="first", canary="second")
    for latency_ms in (1.0, 9.0):
        for _ in range(2 * NUM_KEPT):
            traffic.note("second", latency_ms=latency_ms, scores_B=np.zeros(1, np.float32))
    _, canary = traffic.arms()
    assert (canary.num_answers, len(canary.latency_ms_A)) == (4 * NUM_KEPT, NUM_KEPT)
    assert (canary.latency_ms_A == 9.0).mean() == pytest.approx(0.5, abs=0.05)
