"""Retrieval of stories against naive searches and figures that can be checked in the head."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from storyrec.errors import ModelError
from storyrec.experiments.retrieval import Gallery, Retrieval

NUM_STORIES = 900


def make_world(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Story vectors with a padding row, product vectors, and pairs: product p > 0 is mounted by 1 to 8 stories."""
    random = np.random.default_rng(seed)
    stories_ND, products_PD = random.normal(size=(NUM_STORIES + 1, 6)), random.normal(size=(60, 6))
    pairs: list[tuple[int, int]] = []
    for product in range(1, 60):
        mounted_by = random.choice(np.arange(1, NUM_STORIES + 1), size=1 + product % 8, replace=False)
        stories_ND[mounted_by[::2]] = products_PD[product] + random.normal(size=(len(mounted_by[::2]), 6)) * 0.6
        pairs += [(int(story), product) for story in mounted_by]
    return stories_ND.astype(np.float32), products_PD.astype(np.float32), np.unique(np.array(pairs), axis=0)


def naive(stories_ND: np.ndarray, product_D: np.ndarray, relevant: set[int]) -> dict[str, float]:
    """One query, story by story."""
    distance = {row: math.dist(stories_ND[row], product_D) for row in range(1, len(stories_ND))}
    order = sorted(distance, key=distance.__getitem__)
    ranks = [rank for rank, row in enumerate(order[:5], start=1) if row in relevant]
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(5, len(relevant)) + 1))
    labels = [row in relevant for row in order[:500]]
    both = any(labels) and not all(labels)
    return {
        "hit_at_5": float(bool(ranks)),
        "recall_at_5": len(ranks) / len(relevant),
        "ndcg_at_5": sum(1 / math.log2(rank + 1) for rank in ranks) / best,
        "auc_top_500": roc_auc_score(labels, [-distance[row] for row in order[:500]]) if both else math.nan,
        "missing": float(not any(labels)),
    }


def test_equals_a_naive_search() -> None:
    stories_ND, products_PD, pairs_M2 = make_world()
    rows_Q = np.arange(1, 60)
    found = Gallery(stories_ND, pairs_M2=pairs_M2).retrieve(products_PD[rows_Q], product_rows_Q=rows_Q)
    expected = [naive(stories_ND, products_PD[row], set(pairs_M2[pairs_M2[:, 1] == row, 0].tolist())) for row in rows_Q]
    metrics = found.metrics()
    for name in ("hit_at_5", "recall_at_5", "ndcg_at_5"):
        assert metrics[name] == pytest.approx(np.mean([query[name] for query in expected]))
        assert 0.05 < metrics[name] < 0.95
    aucs = np.array([query["auc_top_500"] for query in expected])
    np.testing.assert_allclose(found.auc_Q, aucs, atol=1e-6)
    assert metrics["auc_top_500"] == pytest.approx(np.nanmean(aucs))
    num_missing = sum(query["missing"] for query in expected)
    assert num_missing > 0  # a product whose only story lies far away
    assert metrics["num_queries_without_auc"] == num_missing
    assert metrics["auc_top_500_missing_as_zero"] == pytest.approx(np.nansum(aucs) / len(rows_Q))
    assert metrics["num_queries"] == 59


def test_figures_to_check_in_the_head() -> None:
    stories_N1 = np.array([[0], [1], [2], [3], [4], [5], [6], [7]], np.float32)  # row 0 is the padding
    pairs_M2 = np.array([[2, 1], [3, 1], [7, 1], [6, 2]])
    metrics_of = Gallery(stories_N1, pairs_M2=pairs_M2).retrieve(
        np.array([[0.0], [0.0]], np.float32), product_rows_Q=np.array([1, 2])
    )
    # product 1: its stories are second, third and seventh of seven; product 2: its only story is sixth
    assert metrics_of.hit_Q.tolist() == [True, False]
    assert metrics_of.recall_Q.tolist() == [pytest.approx(2 / 3), 0]
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert metrics_of.ndcg_Q.tolist() == [pytest.approx((1 / math.log2(3) + 1 / 2) / best), 0]
    assert metrics_of.auc_Q.tolist() == [pytest.approx((3 + 3 + 0) / 12), pytest.approx(1 / 6)]


def test_the_padding_is_no_story() -> None:
    stories_N1 = np.array([[0], [10], [20]], np.float32)
    found = Gallery(stories_N1, pairs_M2=np.array([[1, 1]])).retrieve(
        np.zeros((1, 1), np.float32), product_rows_Q=np.array([1])
    )
    assert found.auc_Q.tolist() == [1.0]
    assert found.ndcg_Q.tolist() == [1.0]


def test_a_story_as_far_as_another_counts_one_half() -> None:
    stories_N1 = np.array([[0], [10], [10], [30]], np.float32)
    found = Gallery(stories_N1, pairs_M2=np.array([[2, 1]])).retrieve(
        np.zeros((1, 1), np.float32), product_rows_Q=np.array([1])
    )
    assert found.auc_Q.tolist() == [0.75]


def test_a_query_with_nothing_but_relevant_stories_has_no_auc_and_is_not_missing() -> None:
    found = Gallery(np.zeros((3, 2), np.float32), pairs_M2=np.array([[1, 1], [2, 1]])).retrieve(
        np.zeros((1, 2), np.float32), product_rows_Q=np.array([1])
    )
    metrics = found.metrics()
    assert metrics["num_queries_without_auc"] == 1
    assert math.isnan(metrics["auc_top_500"])
    assert math.isnan(metrics["auc_top_500_missing_as_zero"])
    assert metrics["hit_at_5"] == metrics["ndcg_at_5"] == 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stories_ND, products_PD, pairs_M2 = make_world()
    rows_Q = np.arange(1, 60)
    gallery = Gallery(stories_ND, pairs_M2=pairs_M2)
    whole = gallery.retrieve(products_PD[rows_Q], product_rows_Q=rows_Q)
    monkeypatch.setattr("storyrec.experiments.retrieval.BLOCK", 7)
    parts = gallery.retrieve(products_PD[rows_Q], product_rows_Q=rows_Q)
    np.testing.assert_array_equal(whole.hit_Q, parts.hit_Q)
    np.testing.assert_allclose(whole.auc_Q, parts.auc_Q, atol=1e-6)


def test_some_of_the_queries() -> None:
    found = Retrieval(
        hit_Q=np.array([True, False, False]),
        recall_Q=np.array([0.5, 0.0, 0.0]),
        ndcg_Q=np.array([0.6, 0.0, 0.0]),
        auc_Q=np.array([0.9, np.nan, 0.2]),
        is_missing_Q=np.array([False, True, False]),
    )
    assert found.metrics(np.array([True, True, False])) == {
        "hit_at_5": 0.5,
        "recall_at_5": 0.25,
        "ndcg_at_5": 0.3,
        "auc_top_500": 0.9,
        "auc_top_500_missing_as_zero": 0.45,
        "num_queries": 2,
        "num_queries_without_auc": 1,
    }
    assert math.isnan(found.metrics(np.zeros(3, np.bool_))["hit_at_5"])


def test_the_approximate_search_is_judged_against_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stories_ND, products_PD, pairs_M2 = make_world()
    rows_Q = np.arange(1, 60)
    gallery = Gallery(stories_ND, pairs_M2=pairs_M2)
    exact = gallery.retrieve(products_PD[rows_Q], product_rows_Q=rows_Q).metrics()
    every_cell = gallery.compare_approximate(products_PD[rows_Q], product_rows_Q=rows_Q)
    assert every_cell["approximate_found_at_5"] > 0.9
    monkeypatch.setattr("storyrec.experiments.retrieval.PROBED_CELLS", 1)
    one_cell = gallery.compare_approximate(products_PD[rows_Q], product_rows_Q=rows_Q)
    assert 0.2 < one_cell["approximate_found_at_5"] < 0.8
    assert one_cell["approximate_hit_at_5"] < exact["hit_at_5"]
    assert one_cell["approximate_speedup_at_5"] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_vectors_that_are_not_finite(bad: float) -> None:
    pairs_M2 = np.array([[1, 1]])
    with pytest.raises(ModelError, match="not finite"):
        Gallery(np.array([[0.0], [bad]], np.float32), pairs_M2=pairs_M2)
    gallery = Gallery(np.array([[0.0], [1.0]], np.float32), pairs_M2=pairs_M2)
    with pytest.raises(ModelError, match="not finite"):
        gallery.retrieve(np.array([[bad]], np.float32), product_rows_Q=np.array([1]))
