"""What the gate weighs, as sums over users: a figure is its total divided by its weight.

Paper: Sec. IV-C, Eq. 12. Suffixes: B impressions, U users ascending, Q bins of scores.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.metrics import Booleans, Floats, Integers, click_ranks, per_user_auc

NUM_BINS = 10
TWO_SIDED = 1.96
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)  # as scikit-learn's log loss


@dataclass(frozen=True)
class UserSums:
    """One figure of one model.

    Attributes:
        total_U, weight_U: of each user, [U] float; both 0 where she cannot be scored.
    """

    total_U: Floats
    weight_U: Floats


def interval(sums: UserSums) -> tuple[float, float]:
    """Where a figure lies with 95 % confidence, users being independent; the normal approximation of a ratio."""
    weight = sums.weight_U.sum()
    figure = sums.total_U.sum() / weight
    error = float(np.sqrt(((sums.total_U - figure * sums.weight_U) ** 2).sum()) / weight)
    return float(figure - TWO_SIDED * error), float(figure + TWO_SIDED * error)


def auc_sums(user_ids_B: Integers, clicked_B: Booleans, scores_B: Floats, *, users_U: Integers) -> UserSums:
    """Per-user AUC: every scorable user weighs the same. Paper: Eq. 12."""
    found = per_user_auc(user_ids_B, clicked_B, scores_B)
    total_U, weight_U = np.zeros(len(users_U)), np.zeros(len(users_U))
    places = np.searchsorted(users_U, found.users_U)
    total_U[places], weight_U[places] = found.values_U, 1.0
    return UserSums(total_U, weight_U)


def ndcg_sums(
    user_ids_B: Integers,
    clicked_B: Booleans,
    scores_B: Floats,
    *,
    users_U: Integers,
    num_candidates: int,
    top_k: int,
    seed: int,
) -> UserSums:
    """NDCG@K: every ranked click weighs the same; both models face the same candidates."""
    found = click_ranks(user_ids_B, clicked_B, scores_B, num_candidates=num_candidates, seed=seed)
    places = np.searchsorted(users_U, found.user_ids)
    value = np.where(found.ranks <= top_k, 1 / np.log2(found.ranks + 1), 0.0)
    return UserSums(_sums(places, value, num=len(users_U)), _sums(places, np.ones(len(places)), num=len(users_U)))


def log_loss_sums(user_ids_B: Integers, clicked_B: Booleans, scores_B: Floats, *, users_U: Integers) -> UserSums:
    """Log loss: every impression weighs the same."""
    places_B = np.searchsorted(users_U, user_ids_B)
    likely_B = np.clip(scores_B, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    loss_B = -np.log(np.where(clicked_B, likely_B, 1 - likely_B))
    return UserSums(_sums(places_B, loss_B, num=len(users_U)), _sums(places_B, np.ones(len(loss_B)), num=len(users_U)))


def calibration_sums(user_ids_B: Integers, clicked_B: Booleans, scores_B: Floats, *, users_U: Integers) -> Floats:
    """Score minus click of each user's impressions by bins with equally many of all impressions, [U, Q]."""
    places_B = np.searchsorted(users_U, user_ids_B)
    rank_B = np.empty(len(scores_B), np.int64)
    rank_B[np.argsort(scores_B, kind="stable")] = np.arange(len(scores_B))
    bins_B = rank_B * NUM_BINS // max(1, len(scores_B))
    cells = _sums(places_B * NUM_BINS + bins_B, scores_B - clicked_B, num=len(users_U) * NUM_BINS)
    return cells.reshape(len(users_U), NUM_BINS)


def calibration_error(gaps_Q: Floats, num_impressions: npt.ArrayLike) -> Floats:
    """Expected calibration error: mean |score - click rate| over bins of equal size; [..., Q] -> [...]."""
    return np.abs(gaps_Q).sum(axis=-1) / np.asarray(num_impressions)


def _sums(places: Integers, values: Floats, *, num: int) -> Floats:
    """The sum of the values at each of `num` places."""
    return np.bincount(places, values, num).astype(np.float64)
