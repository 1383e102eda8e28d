"""The verdict: every rule as it was judged, its figures and its reason, in one JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

VERDICT = "verdict.json"
SLICE = "slice: "
"""How the rule about a slice begins its name."""

Value = float | str | bool | None


@dataclass(frozen=True)
class Outcome:
    """What came of judging one rule; the fields are those of `Rule`."""

    passed: bool
    figures: dict[str, Value]
    threshold: Value
    reason: str


@dataclass(frozen=True)
class Rule:
    """One rule as it was judged.

    Attributes:
        name: of the rule.
        passed: whether it holds, or was not to be judged, as its reason then says.
        figures: what it was judged by.
        threshold: what it asks for.
        reason: the same for people.
    """

    name: str
    passed: bool
    figures: Mapping[str, Value]
    threshold: Value
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The recorded judgement of one challenger.

    Attributes:
        blessed: whether every rule holds.
        day: partition key of the run; None if the evaluation does not say.
        challenger: version of the judged bundle; None if the evaluation does not say.
        champion: version of the bundle it was compared with; None: there was none.
        rules: in the order of judging.
    """

    blessed: bool
    day: str | None
    challenger: str | None
    champion: str | None
    rules: tuple[Rule, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not, rule by rule; or, of a blessed challenger, why."""
        return tuple(rule.reason for rule in self.rules if rule.passed == self.blessed)


def verdict_json(verdict: Verdict) -> bytes:
    """The bytes of verdict.json; a figure that is not finite becomes null."""
    content = asdict(verdict) | {"reasons": verdict.reasons}
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False).encode()


def _finite(content: object) -> object:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
