"""The challenger against the champion on the same impressions: no figure and no slice may fall by more than its margin.

All differences come from one paired bootstrap by user. Suffixes: B impressions, U users, M columns, R resamples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from storyrec.gate.bootstrap import Gain, gain, resampled_sums
from storyrec.gate.evidence import Evidence, number
from storyrec.gate.measures import (
    NUM_BINS,
    UserSums,
    auc_sums,
    calibration_error,
    calibration_sums,
    log_loss_sums,
    ndcg_sums,
)
from storyrec.gate.thresholds import Margin, Thresholds
from storyrec.gate.verdict import SLICE, Outcome, Value
from storyrec.metrics import Booleans, Floats, Integers


@dataclass(frozen=True, eq=False)
class Comparison:
    """Differences between both models, resampled; positive means that the challenger is better.

    Attributes:
        estimates: per_user_auc, ndcg, log_loss, calibration, and per-user AUC of `slice: NAME`; NaN without a user.
        resampled_R: the same in each resample.
        num_users: that each is made of.
        champion: the champion's own figures, by the same names.
    """

    estimates: Mapping[str, float]
    resampled_R: Mapping[str, Floats]
    num_users: Mapping[str, int]
    champion: Mapping[str, float]

    def gain(self, name: str, *, confidence: float) -> Gain:
        """One difference with its bounds and its power; ValueError where it is not finite."""
        return gain(self.estimates[name], self.resampled_R[name], confidence=confidence, num_users=self.num_users[name])


def compare(evidence: Evidence, *, num_resamples: int, seed: int) -> Comparison:
    """Resample the users once and take every difference from the same resamples."""
    scores = evidence.scores
    if scores.champion_B is None:
        raise ValueError("there are no scores of the champion")
    users_U = np.unique(scores.user_ids_B)
    parts: list[tuple[str, UserSums, UserSums, float]] = []
    everything_B = np.ones(len(scores.clicked_B), np.bool_)
    losing = {"log_loss": -1.0}
    for name, part_B in ({"": everything_B} | {SLICE + name: part_B for name, part_B in scores.slices.items()}).items():
        measures = _sums(evidence, part_B, scores.champion_B, users_U=users_U, everything=not name)
        parts += [(name or figure, *pair, losing.get(figure, 1.0)) for figure, pair in measures.items()]
    gaps = [
        calibration_sums(scores.user_ids_B, scores.clicked_B, scores_B, users_U=users_U)
        for scores_B in (scores.challenger_B, scores.champion_B)
    ]
    num_shown_U = np.bincount(np.searchsorted(users_U, scores.user_ids_B), minlength=len(users_U))
    columns = [column for _, new, old, _ in parts for column in (new.total_U - old.total_U, new.weight_U)]
    totals_UM = np.column_stack([*columns, *gaps, num_shown_U])
    sums_RM = np.vstack([totals_UM.sum(axis=0), resampled_sums(totals_UM, num_resamples=num_resamples, seed=seed)])

    estimates: dict[str, float] = {}
    resampled_R: dict[str, Floats] = {}
    num_users: dict[str, int] = {}
    champion: dict[str, float] = {}
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty slice is NaN, and not judged
        for place, (name, new, old, sign) in enumerate(parts):
            ratio_R = sign * sums_RM[:, 2 * place] / sums_RM[:, 2 * place + 1]
            estimates[name], resampled_R[name] = float(ratio_R[0]), ratio_R[1:]
            num_users[name] = int((new.weight_U > 0).sum())
            champion[name] = float(old.total_U.sum() / old.weight_U.sum())
    shown_R, bins_RM = sums_RM[:, -1], sums_RM[:, 2 * len(parts) : -1]
    new_R, old_R = (calibration_error(bins_RM[:, part], shown_R) for part in (slice(NUM_BINS), slice(NUM_BINS, None)))
    estimates["calibration"], resampled_R["calibration"] = float(old_R[0] - new_R[0]), (old_R - new_R)[1:]
    num_users["calibration"], champion["calibration"] = len(users_U), float(old_R[0])
    return Comparison(estimates, resampled_R, num_users, champion)


def _sums(
    evidence: Evidence, part_B: Booleans, champion_B: Floats, *, users_U: Integers, everything: bool
) -> dict[str, tuple[UserSums, UserSums]]:
    """Challenger's and champion's sums on some impressions; all figures of everything, of a slice the AUC alone."""
    scores = evidence.scores
    user_ids_B, clicked_B = scores.user_ids_B[part_B], scores.clicked_B[part_B]
    both = (scores.challenger_B[part_B], champion_B[part_B])
    found = {"per_user_auc": [auc_sums(user_ids_B, clicked_B, scores_B, users_U=users_U) for scores_B in both]}
    if everything:
        ranking = {"num_candidates": evidence.num_candidates, "top_k": evidence.top_k, "seed": evidence.seed}
        found["ndcg"] = [ndcg_sums(user_ids_B, clicked_B, scores_B, users_U=users_U, **ranking) for scores_B in both]
        found["log_loss"] = [log_loss_sums(user_ids_B, clicked_B, scores_B, users_U=users_U) for scores_B in both]
    return {name: (new, old) for name, (new, old) in found.items()}


def judge_gain(comparison: Comparison, name: str, margin: Margin, *, label: str) -> Outcome:
    """Non-inferiority: with the confidence, the challenger loses less than the margin."""
    allowed = number(margin.margin, f"the margin of {name}")
    confidence = number(margin.confidence, f"the confidence of {name}")
    found = comparison.gain(name, confidence=confidence)
    passed = found.lower > -allowed
    figures = asdict(found) | {"champion": number(comparison.champion[name], f"the champion's {label}")}
    reason = (
        f"{label} {_difference(found.estimate)} than the champion's {figures['champion']:.4f}; with {confidence:.0%} "
        f"confidence the difference is at least {found.lower:+.4f}, {'more' if passed else 'but it takes more'} than "
        f"{-allowed:+.4f}. "
        f"A true loss of {found.detectable:.4f} would have shown"
    )
    return Outcome(passed, figures, -allowed, reason)


def judge_slice(comparison: Comparison, name: str, thresholds: Thresholds) -> Outcome:
    """Non-inferiority on a slice; one with few users is reported.

    So is one in which half the margin would not have shown, unless the challenger surely lost more than the margin:
    among a dozen slices that the day cannot tell, an equal challenger would fall through one by chance.
    """
    needed = number(thresholds.min_slice_users, "gate.min_slice_users")
    num_users = comparison.num_users[name]
    label = f"{name.removeprefix(SLICE)}, {num_users:,} users: per-user AUC"
    if num_users < needed:
        figures: dict[str, Value] = {"num_users": num_users, "estimate": comparison.estimates[name], "judged": False}
        reason = (
            f"{name.removeprefix(SLICE)}: {num_users:,} scorable users, too few to be judged (it takes {needed:,.0f})"
        )
        return Outcome(True, figures, needed, reason)
    outcome = judge_gain(comparison, name, thresholds.slices, label=label)
    allowed = number(thresholds.slices.margin, f"the margin of {name}")
    blurred = number(outcome.figures["detectable"], "what the day shows") > allowed / 2
    if not blurred:
        return Outcome(outcome.passed, outcome.figures | {"judged": True}, outcome.threshold, outcome.reason)
    upper = number(outcome.figures["upper"], "the upper bound")
    passed = upper > -allowed
    reason = (
        f"{label} {_difference(number(outcome.figures['estimate'], 'the difference'))}, at most {upper:+.4f} with "
        f"{number(thresholds.slices.confidence, 'the confidence'):.0%} confidence: "
        + ("too blurred to be judged" if passed else f"surely less than {-allowed:+.4f}")
    )
    return Outcome(passed, outcome.figures | {"judged": not passed}, outcome.threshold, reason)


def _difference(estimate: float) -> str:
    return f"{abs(estimate):.4f} {'worse' if estimate < 0 else 'better'}"
