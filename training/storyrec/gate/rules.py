"""The rules about figures: that they are true, floors, calibration, and the spread of the scores.

Each takes the evidence and gives its outcome; it raises where it cannot be judged. Suffixes: B impressions, U users.
"""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from scipy.special import entr

from storyrec.gate.evidence import Evidence, number
from storyrec.gate.measures import (
    auc_sums,
    calibration_error,
    calibration_sums,
    interval,
    log_loss_sums,
    ndcg_sums,
)
from storyrec.gate.stability import population_stability
from storyrec.gate.thresholds import Thresholds
from storyrec.gate.verdict import Outcome, Value
from storyrec.metrics import per_user_auc, summarize

AGREEMENT = 1e-6  # between a reported figure and the same figure of the scores
MIN_EARLIER_RUNS = 3


def judge_names(evidence: Evidence) -> Outcome:
    """What was judged is named; reading the evidence refuses anything else."""
    champion = evidence.champion.version if evidence.champion else None
    figures: dict[str, Value] = {
        "challenger": evidence.challenger.version, "champion": champion, "day": evidence.day,
        "num_impressions": len(evidence.scores.clicked_B),
    }  # fmt: skip
    against = f"champion {champion}" if champion else "no champion"
    reason = f"challenger {evidence.challenger.version} of {evidence.day} against {against}"
    return Outcome(True, figures, "bundle versions and a day", reason)


def judge_figures(evidence: Evidence) -> Outcome:
    """Every reported figure is finite and is that of the scores."""
    scores, differing = evidence.scores, []
    largest = 0.0
    for name, model, scores_B in (
        ("challenger", evidence.challenger, scores.challenger_B),
        ("champion", evidence.champion, scores.champion_B),
    ):
        if model is None or scores_B is None:
            continue
        found = summarize(
            scores.user_ids_B,
            scores.clicked_B,
            scores_B,
            num_candidates=evidence.num_candidates,
            top_k=evidence.top_k,
            seed=evidence.seed,
        )
        for figure, value in found.items():
            difference = abs(number(model.metrics.get(figure), f"the {name}'s {figure}") - value)
            largest = max(largest, difference)
            if not difference <= AGREEMENT:
                differing.append(f"{name}'s {figure}: {model.metrics[figure]:.6g} reported, {value:.6g} of the scores")
    reason = "; ".join(differing) or "all scores are probabilities, and all reported figures are theirs"
    return Outcome(not differing, {"largest_difference": largest}, AGREEMENT, reason)


def judge_users(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """There are enough scorable users."""
    needed = number(thresholds.min_users, "gate.min_users")
    scores = evidence.scores
    num_users = len(per_user_auc(scores.user_ids_B, scores.clicked_B, scores.challenger_B).users_U)
    relation = "at least" if num_users >= needed else "but it takes"
    reason = f"{num_users:,} scorable users, {relation} {needed:,.0f}"
    return Outcome(num_users >= needed, {"num_users": num_users}, needed, reason)


def judge_auc_floor(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The per-user AUC reaches its floor."""
    floor = number(thresholds.min_per_user_auc, "gate.min_per_user_auc")
    found = number(evidence.challenger.metrics.get("per_user_auc"), "the challenger's per-user AUC")
    scores = evidence.scores
    users_U = np.unique(scores.user_ids_B)
    low, high = interval(auc_sums(scores.user_ids_B, scores.clicked_B, scores.challenger_B, users_U=users_U))
    passed = found >= floor
    reason = f"per-user AUC {found:.4f} {'reaches' if passed else 'is below'} the floor {floor:.4f}"
    return Outcome(passed, {"per_user_auc": found, "low": low, "high": high}, floor, reason)


def judge_ndcg_floor(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """NDCG@K reaches its floor."""
    floor = number(thresholds.min_ndcg, "gate.min_ndcg")
    top_k, scores = evidence.top_k, evidence.scores
    found = number(evidence.challenger.metrics.get(f"ndcg_at_{top_k}"), f"the challenger's NDCG@{top_k}")
    sums = ndcg_sums(
        scores.user_ids_B,
        scores.clicked_B,
        scores.challenger_B,
        users_U=np.unique(scores.user_ids_B),
        num_candidates=evidence.num_candidates,
        top_k=top_k,
        seed=evidence.seed,
    )
    low, high = interval(sums)
    passed = found >= floor
    reason = f"NDCG@{top_k} {found:.4f} {'reaches' if passed else 'is below'} the floor {floor:.4f}"
    return Outcome(passed, {"ndcg": found, "low": low, "high": high}, floor, reason)


def judge_log_loss_ceiling(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The probabilities say more than the click rate alone."""
    largest = number(thresholds.max_log_loss_ratio, "gate.max_log_loss_ratio")
    found = number(evidence.challenger.metrics.get("log_loss"), "the challenger's log loss")
    click_rate = float(evidence.scores.clicked_B.mean())
    constant = float(entr(click_rate) + entr(1 - click_rate))
    if constant == 0:
        raise ValueError("all held-out impressions are clicked, or none")
    scores = evidence.scores
    users_U = np.unique(scores.user_ids_B)
    low, high = interval(log_loss_sums(scores.user_ids_B, scores.clicked_B, scores.challenger_B, users_U=users_U))
    passed = found <= largest * constant
    reason = (
        f"log loss {found:.4f}, {found / constant:.3f} times that of always saying the click rate; "
        f"{'at' if passed else 'but at'} most {largest:g} times"
    )
    figures: dict[str, Value] = {"log_loss": found, "low": low, "high": high, "of_click_rate": constant}
    return Outcome(passed, figures, largest, reason)


def judge_calibration(evidence: Evidence, thresholds: Thresholds, *, earlier: Sequence[float]) -> Outcome:
    """Probabilities meet click rates: in themselves, and no worse than the earlier runs' did."""
    largest = number(thresholds.max_calibration_error, "gate.max_calibration_error")
    rise = number(thresholds.max_calibration_rise, "gate.max_calibration_rise")
    error = _calibration_error(evidence)
    figures: dict[str, Value] = {"error": error, "num_earlier_runs": len(earlier)}
    passed = error <= largest
    reason = f"expected calibration error {error:.4f}, {'at' if passed else 'but at'} most {largest:g}"
    if len(earlier) < MIN_EARLIER_RUNS:
        return Outcome(passed, figures, largest, f"{reason}; {len(earlier)} earlier runs, too few for a trend")
    usual = number(median(earlier), "the earlier runs' calibration error")
    figures |= {"median_of_earlier_runs": usual, "max_rise": rise}
    kept = error <= usual + rise
    reason += (
        f"; {error - usual:+.4f} against the median of {len(earlier)} earlier runs, {'at' if kept else 'but at'} most "
        f"{rise:+g}"
    )
    return Outcome(passed and kept, figures, largest, reason)


def _calibration_error(evidence: Evidence) -> float:
    """The challenger's expected calibration error on the held-out impressions."""
    scores = evidence.scores
    users_U = np.unique(scores.user_ids_B)
    gaps_UQ = calibration_sums(scores.user_ids_B, scores.clicked_B, scores.challenger_B, users_U=users_U)
    return number(float(calibration_error(gaps_UQ.sum(axis=0), len(scores.clicked_B))), "calibration error")


def judge_first_model(thresholds: Thresholds) -> Outcome:
    """Without a champion, the settings decide."""
    if thresholds.allow_first_model is None:
        raise ValueError("gate.allow_first_model is missing")
    allowed = thresholds.allow_first_model is True
    reason = "there is no champion yet; a first model is " + ("allowed" if allowed else "not allowed by the settings")
    return Outcome(allowed, {"allow_first_model": allowed}, True, reason)


def judge_drift(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The scores are spread much as the champion's."""
    largest = number(thresholds.max_drift, "gate.max_drift")
    champion_B = evidence.scores.champion_B
    if champion_B is None:
        raise ValueError("there are no scores of the champion")
    index = population_stability(champion_B, evidence.scores.challenger_B)
    passed = math.isfinite(index) and 0 <= index <= largest
    reason = (
        f"population stability index of the scores {index:.3f} against the champion's, "
        f"{'at' if passed else 'but at'} most {largest:g}"
    )
    return Outcome(passed, {"population_stability_index": index}, largest, reason)
