"""How good scores are, each figure under an unmistakable name.

Paper: Sec. IV-C. A user who has not both a clicked and a non-clicked impression has no per-user
AUC; a click of a user without non-clicked impressions has no rank. Both are left out and counted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class PerUserAuc:
    """One value per scorable user, users ascending.

    Attributes:
        users_U: user ids, [U].
        values_U: AUC of each user in [0, 1], [U].
        num_impressions_U: impressions of each user, [U].
        num_left_out: users with only one class.
    """

    users_U: Integers
    values_U: Floats
    num_impressions_U: Integers
    num_left_out: int

    @property
    def mean(self) -> float:
        """Mean over the scorable users (Eq. 12); NaN without any."""
        return float(self.values_U.mean()) if self.values_U.size else float("nan")

    @property
    def impression_weighted_mean(self) -> float:
        """Mean weighted by each user's impressions; NaN without any user."""
        if not self.values_U.size:
            return float("nan")
        return float(np.average(self.values_U, weights=self.num_impressions_U))


def per_user_auc(user_ids_B: Integers, clicked_B: Booleans, scores_B: Floats) -> PerUserAuc:
    """Area under the ROC curve of each user's impressions; ties count one half.

    Paper: Sec. IV-C, Eq. 12.

    Args:
        user_ids_B: who saw the story, [B] int64.
        clicked_B: whether it was clicked, [B] bool.
        scores_B: any score that rises with the click probability, [B].
    """
    if not len(user_ids_B):
        empty = np.empty(0, np.int64)
        return PerUserAuc(empty, empty.astype(np.float64), empty, 0)
    order = np.lexsort((scores_B, user_ids_B))
    users, clicked, scores = user_ids_B[order], clicked_B[order], scores_B[order]
    index = np.arange(len(users))
    starts_user = np.r_[True, users[1:] != users[:-1]]
    starts_tie = starts_user | np.r_[True, scores[1:] != scores[:-1]]
    user_number = np.cumsum(starts_user) - 1
    tie_number = np.cumsum(starts_tie) - 1
    first_of_user = index[starts_user][user_number]
    tie_sizes = np.bincount(tie_number)
    mean_rank = index[starts_tie][tie_number] - first_of_user + (tie_sizes[tie_number] + 1) / 2  # from 1

    num_all = np.bincount(user_number)
    num_clicked = np.bincount(user_number, weights=clicked)
    rank_sum = np.bincount(user_number, weights=mean_rank * clicked)
    num_pairs = num_clicked * (num_all - num_clicked)
    scorable = num_pairs > 0
    wins = rank_sum - num_clicked * (num_clicked + 1) / 2
    return PerUserAuc(
        users_U=users[starts_user][scorable].astype(np.int64),
        values_U=wins[scorable] / num_pairs[scorable],
        num_impressions_U=num_all[scorable],
        num_left_out=int((~scorable).sum()),
    )


@dataclass(frozen=True)
class ClickRanks:
    """The rank of each clicked story among sampled non-clicked ones of the same user.

    Attributes:
        user_ids: who clicked, ascending, one per scorable click.
        ranks: 1 is best, one per scorable click.
        num_left_out: clicks of users without a non-clicked impression.
    """

    user_ids: Integers
    ranks: Integers
    num_left_out: int

    def hit_rate(self, *, top_k: int) -> float:
        """Share of clicks ranked among the first `top_k`; NaN without any click."""
        return float((self.ranks <= top_k).mean()) if self.ranks.size else float("nan")

    def ndcg(self, *, top_k: int) -> float:
        """Mean of 1 / log2(rank + 1), zero beyond `top_k`; NaN without any click."""
        if not self.ranks.size:
            return float("nan")
        return float(np.where(self.ranks <= top_k, 1 / np.log2(self.ranks + 1), 0.0).mean())


def click_ranks(
    user_ids_B: Integers, clicked_B: Booleans, scores_B: Floats, *, num_candidates: int, seed: int
) -> ClickRanks:
    """Rank each clicked story against a seeded sample of the same user's non-clicked ones.

    The paper names no candidate set; this reading reproduces the published relation of NDCG to HR.
    The sample depends on the impressions and the seed alone, so two models face the same
    candidates. Equal scores are ordered by chance (seeded).

    Args:
        user_ids_B, clicked_B, scores_B: as in `per_user_auc`.
        num_candidates: at most so many non-clicked stories per click.
        seed: of the sample and of the order among equal scores.
    """
    generator = np.random.default_rng(seed)
    chance_B = generator.random(len(user_ids_B))
    order = np.argsort(user_ids_B, kind="stable")
    boundaries = np.flatnonzero(np.diff(user_ids_B[order])) + 1
    users: list[Integers] = []
    ranks: list[Integers] = []
    num_left_out = 0
    for rows in np.split(order, boundaries):
        clicked_rows, other_rows = rows[clicked_B[rows]], rows[~clicked_B[rows]]
        if not clicked_rows.size or not other_rows.size:
            num_left_out += int(clicked_rows.size)
            continue
        draws = generator.random((clicked_rows.size, other_rows.size))
        chosen = other_rows[np.argsort(draws, axis=1)[:, :num_candidates]]
        score, chance = scores_B[clicked_rows, None], chance_B[clicked_rows, None]
        better = (scores_B[chosen] > score) | ((scores_B[chosen] == score) & (chance_B[chosen] > chance))
        users.append(user_ids_B[clicked_rows])
        ranks.append(1 + better.sum(axis=1))
    if not ranks:
        return ClickRanks(np.empty(0, np.int64), np.empty(0, np.int64), num_left_out)
    return ClickRanks(np.concatenate(users), np.concatenate(ranks), num_left_out)


def summarize(
    user_ids_B: Integers,
    clicked_B: Booleans,
    scores_B: Floats,
    *,
    num_candidates: int,
    top_k: int,
    seed: int,
) -> dict[str, float]:
    """Every figure of one model on one set of impressions, by name.

    Returns:
        per_user_auc, impression_weighted_auc, global_auc, log_loss, mean_score, click_rate,
        hr_at_K, ndcg_at_K, and the counts num_impressions, num_users, num_users_left_out,
        num_clicks_left_out, num_not_finite. Where a score is not finite, every figure is NaN.
    """
    num_not_finite = int((~np.isfinite(scores_B)).sum())
    counts = {"num_impressions": len(scores_B), "num_not_finite": num_not_finite}
    names = ["per_user_auc", "impression_weighted_auc", "global_auc", "log_loss", "mean_score"]
    names += [f"hr_at_{top_k}", f"ndcg_at_{top_k}"]
    if num_not_finite or not len(scores_B):
        return dict.fromkeys(names, float("nan")) | counts
    by_user = per_user_auc(user_ids_B, clicked_B, scores_B)
    ranks = click_ranks(user_ids_B, clicked_B, scores_B, num_candidates=num_candidates, seed=seed)
    both_classes = bool(clicked_B.any() and not clicked_B.all())
    is_probability = bool(scores_B.min() >= 0 and scores_B.max() <= 1)
    return {
        "per_user_auc": by_user.mean,
        "impression_weighted_auc": by_user.impression_weighted_mean,
        "global_auc": float(roc_auc_score(clicked_B, scores_B)) if both_classes else float("nan"),
        "log_loss": float(log_loss(clicked_B, scores_B, labels=[False, True])) if is_probability else float("nan"),
        "mean_score": float(scores_B.mean()),
        "click_rate": float(clicked_B.mean()),
        f"hr_at_{top_k}": ranks.hit_rate(top_k=top_k),
        f"ndcg_at_{top_k}": ranks.ndcg(top_k=top_k),
        "num_users": len(by_user.users_U),
        "num_users_left_out": by_user.num_left_out,
        "num_clicks_left_out": ranks.num_left_out,
    } | counts
