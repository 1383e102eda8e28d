"""What a test recommends, in sentences for whoever decides.

Several metrics are several chances to be wrong: a metric has changed where its p-value, times the number of metrics, is
at most ALPHA (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from storyrec.ab.effects import ALPHA, Interval

if TYPE_CHECKING:
    from storyrec.ab.analyze import Measured


class Outcome(StrEnum):
    """What came out."""

    INVALID = "invalid"
    BETTER = "better"
    WORSE = "worse"
    MIXED = "mixed"
    OPEN = "open"


@dataclass(frozen=True)
class Verdict:
    """What follows from a test.

    Attributes:
        outcome: of the treatment, against the control.
        is_final: whether it holds whenever one looks; if not, only if the test ends where it was planned to.
        changed: names of the metrics that show it.
        recommendation: a sentence or two.
    """

    outcome: Outcome
    is_final: bool
    changed: tuple[str, ...]
    recommendation: str


def conclude(metrics: "Sequence[Measured]", *, is_mismatch: bool) -> Verdict:
    """Decide by all metrics together; the always-valid p-values go first."""
    if is_mismatch:
        return Verdict(
            Outcome.INVALID,
            True,
            (),
            "Do not decide on this test. The arms have not the users they should have, so their difference may be one "
            "of users. Find the cause, then run the test again.",
        )
    compared = [measured for measured in metrics if measured.best is not None]
    level = ALPHA / max(len(compared), 1)
    early = [measured for measured in compared if measured.looks and measured.looks[-1].p_value <= level]
    changed = [m for m in compared if m in early or (m.best is not None and m.best.p_value <= level)]
    names = tuple(measured.metric.name for measured in changed)
    listed = ", ".join(_says(measured) for measured in changed or compared)
    signs = {measured.best.log_lift > 0 for measured in changed if measured.best is not None}
    ending = (
        "The daily monitoring shows it too, so the test may end today."
        if early
        else "This holds if the test was planned to end today; if not, go on until it ends as planned."
    )
    if not changed:
        return Verdict(
            Outcome.OPEN,
            False,
            (),
            "Keep the control, or go on if a lift within these intervals is worth it: "
            f"{listed or 'nothing could be compared'}. `storyrec ab plan` says how long that takes.",
        )
    if len(signs) > 1:
        return Verdict(
            Outcome.MIXED,
            bool(early),
            names,
            f"Better and worse at once: {listed}. Weigh these before deploying. {ending}",
        )
    if signs == {True}:
        return Verdict(Outcome.BETTER, bool(early), names, f"Deploy the treatment: it is better in {listed}. {ending}")
    return Verdict(Outcome.WORSE, bool(early), names, f"Keep the control: the treatment is worse in {listed}. {ending}")


def say_interval(lift: Interval) -> str:
    """A lift as people read it."""
    return f"{lift.estimate:+.1%} ({lift.low:+.1%} to {lift.high:+.1%})"


def _says(measured: "Measured") -> str:
    assert measured.best is not None
    return f"{measured.metric.label} {say_interval(measured.best.lift)}"
