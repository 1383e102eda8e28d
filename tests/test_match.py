"""Nearest stories against a naive search."""

import numpy as np
import pytest

from storyrec.errors import ModelError
from storyrec.match import GROUP, nearest_stories


def naive(products_MD: np.ndarray, stories_ND: np.ndarray, *, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    distances_MN = np.array([[np.sqrt(((p - s) ** 2).sum()) for s in stories_ND] for p in products_MD])
    rows_MK = np.argsort(distances_MN, axis=1, kind="stable")[:, :top_k]
    return rows_MK, np.take_along_axis(distances_MN, rows_MK, axis=1)


@pytest.mark.parametrize("num_stories", [1, 7, GROUP, 5 * GROUP, 40 * GROUP + 3])
@pytest.mark.parametrize("top_k", [1, 4])
def test_equals_a_naive_search(num_stories: int, top_k: int) -> None:
    random = np.random.default_rng(num_stories)
    products_MD, stories_ND = random.normal(size=(13, 6)), random.normal(size=(num_stories, 6))
    rows_MK, distances_MK = nearest_stories(products_MD, stories_ND, top_k=top_k)
    expected_rows, expected_distances = naive(products_MD, stories_ND, top_k=min(top_k, num_stories))
    assert rows_MK.tolist() == expected_rows.tolist()
    np.testing.assert_allclose(distances_MK, expected_distances, rtol=1e-5)


def test_the_nearest_may_all_lie_in_one_group() -> None:
    stories_ND = np.full((50 * GROUP, 3), 9.0)
    stories_ND[7 * GROUP : 7 * GROUP + 5] = np.arange(5)[:, None] * 0.1
    rows_MK, _ = nearest_stories(np.zeros((1, 3)), stories_ND, top_k=5)
    assert rows_MK.tolist() == [[7 * GROUP + i for i in range(5)]]


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    products_MD, stories_ND = random.normal(size=(9, 4)), random.normal(size=(300, 4))
    whole = nearest_stories(products_MD, stories_ND, top_k=3)
    monkeypatch.setattr("storyrec.match.BLOCK_VALUES", 700)
    parts = nearest_stories(products_MD, stories_ND, top_k=3)
    assert whole[0].tolist() == parts[0].tolist()
    np.testing.assert_array_equal(whole[1], parts[1])


def test_a_story_far_from_the_origin_keeps_its_digits() -> None:
    stories_ND = np.array([[1000.0, 0.0], [1000.0, 0.25]])
    rows_MK, distances_MK = nearest_stories(np.array([[1000.0, 0.01]]), stories_ND, top_k=2)
    assert rows_MK.tolist() == [[0, 1]]
    np.testing.assert_allclose(distances_MK, [[0.01, 0.24]], rtol=1e-4)


def test_equal_stories_come_in_order_of_row() -> None:
    rows_MK, distances_MK = nearest_stories(np.ones((1, 2)), np.ones((3, 2)), top_k=3)
    assert rows_MK.tolist() == [[0, 1, 2]]
    assert distances_MK.tolist() == [[0.0, 0.0, 0.0]]


def test_nothing_to_match_is_no_error() -> None:
    assert nearest_stories(np.zeros((0, 2)), np.zeros((3, 2)), top_k=2)[0].shape == (0, 2)
    assert nearest_stories(np.zeros((2, 2)), np.zeros((0, 2)), top_k=2)[0].shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_vectors_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ModelError, match="finite"):
        nearest_stories(np.array([[bad, 0.0]]), np.zeros((3, 2)), top_k=1)


def test_refuses_other_widths() -> None:
    with pytest.raises(ModelError, match="2 and 3"):
        nearest_stories(np.zeros((1, 2)), np.zeros((3, 3)), top_k=1)
