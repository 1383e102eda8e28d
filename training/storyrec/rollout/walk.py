"""One step of a rollout: by what the canary answered, widen its share, make it champion, withdraw it, or wait."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from storyrec.errors import ConfigError
from storyrec.gate.verdict import Rule
from storyrec.promote import promote, set_canary, withdraw_canary
from storyrec.registry import read_champion
from storyrec.rollout.checks import CanaryLimits, judge_canary
from storyrec.rollout.traffic import read_arms
from storyrec.storage import Storage

Action = Literal["none", "wait", "widen", "promote", "withdraw"]


@dataclass(frozen=True)
class Step:
    """What a step did.

    Attributes:
        action: "none" where there is no canary.
        version: of the canary; None: there is none.
        share: of the users that it has had until now, and `next_share` from now on: 1 for a champion, 0 for one that
            was withdrawn.
        why: for people.
        rules: as they were judged.
    """

    action: Action
    version: str | None
    share: float
    next_share: float
    why: str
    rules: tuple[Rule, ...]


def advance(
    registry: Storage,
    answers: Path | None,
    *,
    shares: Sequence[float],
    min_minutes: float,
    limits: CanaryLimits,
    at: datetime,
) -> Step:
    """Take one step.

    Args:
        registry: whose pointer names champion and canary; it is switched by a conditional write.
        answers: folder of the servers' answer logs; None: they keep none.
        shares: ascending, each < 1; after the last one the canary becomes the champion.
        min_minutes: that a share lasts at least.
        limits: what the canary must keep to.
        at: now, aware.

    Raises:
        ConfigError: there is a canary, but no answer log to judge it by.
        ModelError: the pointer, or the bundle that it names, is damaged.
        Conflict: somebody switched the pointer meanwhile; the next step sees what they did.
    """
    pointer = read_champion(registry)
    if pointer is None or pointer.canary is None:
        return Step("none", None, 0.0, 0.0, "there is no canary", ())
    canary = pointer.canary
    if answers is None:
        raise ConfigError(
            f"nobody knows how the canary {canary.version} serves: answers are not logged",
            expected="the folder where all servers log their answers",
            where="serving.answers",
            remedy="set it for the servers and for this command",
        )
    if canary.day < pointer.champion.day:
        why = f"the champion {pointer.champion.version} is of {pointer.champion.day}, a later day than {canary.day}"
        withdraw_canary(registry, canary.version, why=why)
        return Step("withdraw", canary.version, canary.share, 0.0, why, ())
    since = datetime.fromisoformat(canary.since)
    arms = read_arms(answers, since=since, versions=(pointer.champion.version, canary.version))
    champion_arm, canary_arm = (arms[version] for version in (pointer.champion.version, canary.version))
    rules = judge_canary(champion_arm, canary_arm, limits=limits, is_shadow=canary.share == 0)
    failed = [rule.reason for rule in rules if not rule.passed]
    if failed:
        why = "; ".join(failed)
        withdraw_canary(registry, canary.version, why=why)
        return Step("withdraw", canary.version, canary.share, 0.0, why, rules)
    lasting = at - since
    num_seen = min(champion_arm.num_answers, canary_arm.num_answers)
    if lasting < timedelta(minutes=min_minutes) or num_seen < limits.min_requests:
        why = (
            f"{canary.share:.0%} of the users for {lasting.total_seconds() / 60:,.0f} minutes, {num_seen:,} answers; "
            f"it takes {min_minutes:,.0f} minutes and {limits.min_requests:,} answers of either model"
        )
        return Step("wait", canary.version, canary.share, canary.share, why, rules)
    why = "; ".join(rule.reason for rule in rules)
    wider = next((share for share in shares if share > canary.share), None)
    if wider is None:
        promote(registry, canary.version, why=f"after {canary.share:.0%} of the users: {why}", seen=pointer)
        return Step("promote", canary.version, canary.share, 1.0, why, rules)
    set_canary(registry, canary.version, share=wider, why=why, seen=pointer)
    return Step("widen", canary.version, canary.share, wider, why, rules)
