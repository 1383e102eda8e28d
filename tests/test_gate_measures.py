"""The gate's sums and its bootstrap against what a reader would compute by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from evaluated import Evaluated
from storyrec.gate.bootstrap import gain, resampled_sums
from storyrec.gate.measures import (
    auc_sums,
    calibration_error,
    calibration_sums,
    interval,
    log_loss_sums,
    ndcg_sums,
)
from storyrec.gate.stability import population_stability
from storyrec.metrics import click_ranks, per_user_auc


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Impressions of users with gaps in their ids, in no order; one user of clicks only, one of non-clicks only."""
    evaluated = Evaluated.of(num_users=40)
    user_ids, clicked = evaluated.user_ids * 3, evaluated.clicked.copy()
    clicked[user_ids == 3], clicked[user_ids == 6] = True, False
    order = np.random.default_rng(0).permutation(len(user_ids))
    scores = np.round(evaluated.truth, 2)  # with ties
    return user_ids[order], clicked[order], scores[order], np.unique(user_ids)


def test_each_sum_gives_the_figure_of_the_metrics(rows: tuple[np.ndarray, ...]) -> None:
    user_ids, clicked, scores, users = rows
    auc = auc_sums(user_ids, clicked, scores, users_U=users)
    assert auc.total_U.sum() / auc.weight_U.sum() == pytest.approx(per_user_auc(user_ids, clicked, scores).mean)
    assert auc.weight_U[:2].tolist() == [0, 0]
    ranks = click_ranks(user_ids, clicked, scores, num_candidates=5, seed=1)
    ndcg = ndcg_sums(user_ids, clicked, scores, users_U=users, num_candidates=5, top_k=3, seed=1)
    assert ndcg.total_U.sum() / ndcg.weight_U.sum() == pytest.approx(ranks.ndcg(top_k=3))
    assert ndcg.weight_U.sum() == clicked.sum() - ranks.num_left_out
    assert ndcg.weight_U[0] == ndcg.weight_U[1] == 0
    loss = log_loss_sums(user_ids, clicked, scores, users_U=users)
    assert loss.total_U.sum() / loss.weight_U.sum() == pytest.approx(log_loss(clicked, scores))
    one = user_ids == users[7]
    assert loss.total_U[7] / loss.weight_U[7] == pytest.approx(
        log_loss(clicked[one], scores[one], labels=[False, True])
    )


def test_the_calibration_error_is_that_of_ten_equal_bins(rows: tuple[np.ndarray, ...]) -> None:
    user_ids, clicked, scores, users = rows
    gaps = calibration_sums(user_ids, clicked, scores, users_U=users)
    expected = sum(
        len(part) / len(scores) * abs(scores[part].mean() - clicked[part].mean())
        for part in np.array_split(np.argsort(scores, kind="stable"), 10)
    )
    assert calibration_error(gaps.sum(axis=0), len(scores)) == pytest.approx(expected, abs=2e-3)
    one = user_ids == users[7]
    assert gaps[7].sum() == pytest.approx(scores[one].sum() - clicked[one].sum())
    assert calibration_error(np.zeros((2, 10)), np.array([3, 4])).tolist() == [0, 0]


def test_the_stability_index_by_hand() -> None:
    champion = np.linspace(0, 1, 10_001)[1:]
    assert population_stability(champion, champion) == 0
    # everything in the upper half: five deciles of 0.1 become 0.2, five become empty
    upper = 0.5 + champion / 2
    expected = 5 * ((0.2 - 0.1) * np.log(2)) + 5 * ((1e-4 - 0.1) * np.log(1e-4 / 0.1))
    assert population_stability(champion, upper) == pytest.approx(expected, rel=1e-2)
    assert population_stability(np.full(9, 0.3), np.full(9, 0.3)) == 0


def test_resampled_sums_are_those_of_users_drawn_by_chance() -> None:
    totals = np.random.default_rng(3).normal(1.0, 2.0, (300, 2))
    sums = resampled_sums(totals, num_resamples=4_000, seed=1)
    assert sums.mean(axis=0) == pytest.approx(totals.sum(axis=0), rel=0.03)
    assert sums.std(axis=0) == pytest.approx(np.sqrt((totals**2).sum(axis=0)), rel=0.04)  # of Poisson(1) times each


def test_the_resamples_are_the_same_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = np.random.default_rng(3).normal(size=(30, 2))
    whole = resampled_sums(totals, num_resamples=250, seed=1)
    monkeypatch.setattr("storyrec.gate.bootstrap.MAX_DRAWS", 7 * 30)
    assert resampled_sums(totals, num_resamples=250, seed=1) == pytest.approx(whole)
    assert resampled_sums(totals, num_resamples=250, seed=2) != pytest.approx(whole)


def test_the_bounds_cover_and_are_those_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(3)
    below = 0
    for trial in range(200):
        values = generator.normal(0.0, 0.05, 300)
        sums = resampled_sums(np.column_stack([values, np.ones(300)]), num_resamples=400, seed=trial)
        found = gain(float(values.mean()), sums[:, 0] / sums[:, 1], confidence=0.9, num_users=300)
        error = values.std() / np.sqrt(300)
        assert found.lower == pytest.approx(values.mean() - 1.2816 * error, abs=0.0013)
        assert found.upper == pytest.approx(values.mean() + 1.2816 * error, abs=0.0013)
        assert found.detectable == pytest.approx((1.2816 + 0.8416) * error, rel=0.15)
        below += found.lower <= 0.0
    assert 165 <= below <= 194  # 180 expected, standard deviation 4.2


def test_a_difference_that_is_not_finite_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="not finite"):
        gain(0.0, np.array([0.0, np.nan]), confidence=0.9, num_users=2)
    with pytest.raises(ValueError, match="not finite"):
        gain(float("nan"), np.zeros(2), confidence=0.9, num_users=2)


def test_the_interval_of_a_mean_is_the_textbooks(rows: tuple[np.ndarray, ...]) -> None:
    user_ids, clicked, scores, users = rows
    values = per_user_auc(user_ids, clicked, scores).values_U
    low, high = interval(auc_sums(user_ids, clicked, scores, users_U=users))
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error))
