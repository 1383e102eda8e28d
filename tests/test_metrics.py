"""Metrics a reader can check in the head, and against naive recomputations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyrec.metrics import click_ranks, per_user_auc, summarize

# four users: perfect, one tie, only clicks, only non-clicks
USERS = np.array([1, 1, 2, 2, 3, 3, 4, 4])
CLICKED = np.array([1, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
SCORES = np.array([0.9, 0.1, 0.5, 0.5, 0.7, 0.2, 0.3, 0.4])


def test_per_user_auc_counts_ties_half_and_leaves_one_class_users_out():
    result = per_user_auc(USERS, CLICKED, SCORES)
    assert result.users_U.tolist() == [1, 2]
    assert result.values_U.tolist() == [1.0, 0.5]
    assert result.num_left_out == 2
    assert result.mean == 0.75


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.booleans(), st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=40
    )
)
def test_per_user_auc_equals_equation_12(rows):
    users, clicked, scores = (np.array(column) for column in zip(*rows, strict=True))
    expected = {}
    for user in sorted(set(users.tolist())):
        positives, negatives = scores[(users == user) & clicked], scores[(users == user) & ~clicked]
        if len(positives) and len(negatives):
            wins = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
            expected[user] = np.mean(wins)
    result = per_user_auc(users, clicked, scores)
    assert result.users_U.tolist() == list(expected)
    assert result.values_U == pytest.approx(list(expected.values()))
    assert result.num_left_out == len(set(users.tolist())) - len(expected)


def test_weighted_mean_follows_impressions():
    users = np.array([1, 1, 2, 2, 2, 2])
    clicked = np.array([1, 0, 1, 0, 0, 0], dtype=bool)
    scores = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    result = per_user_auc(users, clicked, scores)
    assert result.mean == 0.5
    assert result.impression_weighted_mean == pytest.approx(2 / 6)


def test_ranks_give_hit_rate_and_ndcg():
    users = np.ones(7, dtype=np.int64)
    clicked = np.array([1, 0, 0, 0, 0, 0, 0], dtype=bool)
    scores = np.array([0.5, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4])  # two are better: rank 3
    ranks = click_ranks(users, clicked, scores, num_candidates=13, seed=1)
    assert ranks.ranks.tolist() == [3]
    assert ranks.hit_rate(top_k=5) == 1.0
    assert ranks.hit_rate(top_k=2) == 0.0
    assert ranks.ndcg(top_k=5) == pytest.approx(1 / math.log2(4))


def test_candidates_are_at_most_the_number_asked_for():
    users = np.ones(101, dtype=np.int64)
    clicked = np.zeros(101, dtype=bool)
    clicked[0] = True
    worst = click_ranks(users, clicked, -clicked.astype(float), num_candidates=13, seed=1)
    assert worst.ranks.tolist() == [14]


def test_equal_scores_are_ordered_by_chance():
    users = np.repeat(np.arange(1, 4001), 14)
    clicked = np.tile(np.r_[True, np.zeros(13, dtype=bool)], 4000)
    ranks = click_ranks(users, clicked, np.zeros(len(users)), num_candidates=13, seed=3)
    assert ranks.hit_rate(top_k=5) == pytest.approx(5 / 14, abs=0.03)


def test_two_models_face_the_same_candidates():
    generator = np.random.default_rng(0)
    users, clicked = generator.integers(1, 20, 400), generator.random(400) < 0.2
    scores = generator.random(400)
    first = click_ranks(users, clicked, scores, num_candidates=5, seed=1)
    again = click_ranks(users, clicked, scores * 2, num_candidates=5, seed=1)
    assert first.ranks.tolist() == again.ranks.tolist()


def test_clicks_without_candidates_are_counted():
    assert click_ranks(USERS, CLICKED, SCORES, num_candidates=13, seed=0).num_left_out == 2


def test_a_score_that_is_not_finite_spoils_every_figure():
    scores = SCORES.copy()
    scores[0] = np.nan
    figures = summarize(USERS, CLICKED, scores, num_candidates=13, top_k=5, seed=0)
    assert math.isnan(figures["per_user_auc"])
    assert figures["num_not_finite"] == 1


def test_summary_names_every_figure():
    figures = summarize(USERS, CLICKED, SCORES, num_candidates=13, top_k=5, seed=0)
    assert figures["per_user_auc"] == 0.75
    assert figures["global_auc"] == pytest.approx(12.5 / 16)
    assert figures["num_users"] == 2
    assert figures["num_users_left_out"] == 2
    assert figures["click_rate"] == 0.5
