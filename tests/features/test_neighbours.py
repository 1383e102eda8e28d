"""The index of the stories: exact finds what a naive search does, approximate what its recall says."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from storyrec.errors import DataError, ModelError
from storyrec.features.neighbours import INDEX, STORIES, StoryIndex, build_index, nearest_to_clicks
from storyrec.schema import Domain

VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"
NUM_STORIES, NUM_PRODUCTS, WIDTH = 4_000, 900, 16

Items = dict[str, np.ndarray]


def make_items(*, seed: int = 0, num_stories: int = NUM_STORIES, num_products: int = NUM_PRODUCTS) -> Items:
    """Items in clusters, as trained extractors place them; ids with gaps, row 0 padding."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(60, WIDTH)) * 3
    items = {}
    for name, number in (("story", num_stories), ("product", num_products)):
        vectors = centres[random.integers(len(centres), size=number)] + random.normal(size=(number, WIDTH))
        items[f"{name}_ids"] = np.concatenate([[0], 10 + 3 * np.arange(number)])
        items[f"{name}_match_vectors"] = np.concatenate([np.zeros((1, WIDTH)), vectors]).astype(np.float32)
    return items


@pytest.fixture(scope="module")
def items() -> Items:
    return make_items()


@pytest.fixture(scope="module")
def folder(items: Items, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbours") / VERSION
    build_index(items, version=VERSION, folder=folder)
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> StoryIndex:
    return StoryIndex.load(folder, version=VERSION)


def naive(items: Items, queries_QD: np.ndarray, *, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    stories_ND = items["story_match_vectors"][1:].astype(np.float64)
    distances_QN = np.sqrt(((queries_QD[:, None].astype(np.float64) - stories_ND) ** 2).sum(axis=2))
    rows_QK = np.argsort(distances_QN, axis=1)[:, :top_k]
    return rows_QK, np.take_along_axis(distances_QN, rows_QK, axis=1)


def test_an_exact_search_finds_what_a_naive_one_finds(items: Items, index: StoryIndex) -> None:
    queries_QD = items["product_match_vectors"][1:50]
    rows_QK, distances_QK = index.search(queries_QD, top_k=30, exact=True)
    expected_rows_QK, expected_distances_QK = naive(items, queries_QD, top_k=30)
    np.testing.assert_array_equal(rows_QK, expected_rows_QK)
    np.testing.assert_allclose(distances_QK, expected_distances_QK, rtol=1e-4)


def test_the_recall_on_record_is_that_of_a_naive_comparison(items: Items, index: StoryIndex) -> None:
    assert 1 <= index.info.num_probed < index.info.num_cells  # else the approximate search is exact
    for domain in ("product", "story"):
        recorded = index.info.recall[domain]
        assert recorded.keys() == {10, 500}
        queries_QD = items[f"{domain}_match_vectors"][1::7]
        for top_k in (10, 500):
            expected_QK, _ = naive(items, queries_QD, top_k=top_k)
            found_QK, _ = index.search(queries_QD, top_k=top_k)
            pairs = zip(expected_QK, found_QK, strict=True)
            share = np.mean([len(set(expected) & set(found)) / top_k for expected, found in pairs])
            assert share >= 0.985
            assert recorded[top_k] == pytest.approx(share, abs=0.01)


def test_fewer_probed_cells_find_fewer(items: Items, index: StoryIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall is measured, not assumed: a search that looks into one cell is found out."""
    queries_QD = items["product_match_vectors"][1:200]
    monkeypatch.setattr(index, "info", type(index.info)(**{**vars(index.info), "num_probed": 1}))
    assert index.recall(queries_QD, depths=[500])[500] < 0.7


def test_no_place_is_left_empty_where_the_probed_cells_hold_too_few(items: Items, index: StoryIndex) -> None:
    rows_QK, distances_QK = index.search(items["story_match_vectors"][1:20], top_k=NUM_STORIES + 5)
    assert rows_QK.shape == (19, NUM_STORIES)
    assert all(set(row_K) == set(range(NUM_STORIES)) for row_K in rows_QK.tolist())
    assert (np.diff(distances_QK, axis=1) >= 0).all()


@pytest.mark.parametrize("domain", [Domain.STORY, Domain.PRODUCT])
def test_the_vectors_of_known_items_are_the_bundles(items: Items, index: StoryIndex, domain: Domain) -> None:
    name = domain.name.lower()
    ids, vectors = items[f"{name}_ids"][1:], items[f"{name}_match_vectors"][1:]
    asked = np.array([ids[7], 11, ids[-1], 10**9, 0, ids[0]])
    found, known = index.vectors(asked, domain=domain)
    assert known.tolist() == [True, False, True, False, False, True]
    np.testing.assert_array_equal(found, vectors[[7, -1, 0]])


def test_the_loaded_index_answers_as_the_built_one(items: Items, index: StoryIndex, tmp_path: Path) -> None:
    built = build_index(items, version=VERSION, folder=tmp_path / VERSION)
    assert built.info == index.info
    for one, other in zip(
        built.search(items["product_match_vectors"][1:99], top_k=500),
        index.search(items["product_match_vectors"][1:99], top_k=500),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_the_distance_to_several_clicks_is_their_soft_minimum(items: Items, index: StoryIndex) -> None:
    clicks_CD = items["product_match_vectors"][[5, 60, 61]]
    stories_ND = items["story_match_vectors"][1:].astype(np.float64)
    distances_CN = np.sqrt(((clicks_CD[:, None].astype(np.float64) - stories_ND) ** 2).sum(axis=2))
    expected_N = -np.log(np.exp(-distances_CN).mean(axis=0))
    rows_K, distances_K = nearest_to_clicks(index, clicks_CD, top_k=NUM_STORIES, exact=True)
    np.testing.assert_array_equal(rows_K[:500], np.argsort(expected_N)[:500])  # far ones tie in single precision
    np.testing.assert_allclose(distances_K, np.sort(expected_N), rtol=1e-4)


def test_the_distance_to_one_click_is_the_distance(items: Items, index: StoryIndex) -> None:
    click_CD = items["product_match_vectors"][5:6]
    rows_K, distances_K = nearest_to_clicks(index, click_CD, top_k=20)
    searched_QK, searched_distances_QK = index.search(click_CD, top_k=20)
    np.testing.assert_array_equal(rows_K, searched_QK[0])
    np.testing.assert_allclose(distances_K, searched_distances_QK[0], rtol=1e-6)


def test_vectors_very_far_away_have_finite_distances(index: StoryIndex) -> None:
    _, distances_K = nearest_to_clicks(index, np.array([[0.0] * WIDTH, [1e5] * WIDTH], np.float32), top_k=50)
    assert np.isfinite(distances_K).all()


def test_another_versions_index_is_refused(folder: Path, tmp_path: Path, items: Items) -> None:
    build_index(items, version=VERSION, folder=tmp_path / OTHER)
    with pytest.raises(ModelError, match=f"of model {VERSION}, not of {OTHER}"):
        StoryIndex.load(tmp_path / OTHER, version=OTHER)
    with pytest.raises(ModelError, match=f"no index of model {OTHER}\n  expected: one of {VERSION}"):
        StoryIndex.load(folder.with_name(OTHER), version=OTHER)
    with pytest.raises(ModelError, match="is no model version"):
        StoryIndex.load(folder, version="../" + VERSION)


@pytest.mark.parametrize("queries", [np.zeros((2, WIDTH + 1)), np.zeros(WIDTH), np.full((1, WIDTH), np.nan)])
def test_queries_of_another_space_are_refused(index: StoryIndex, queries: np.ndarray) -> None:
    with pytest.raises(DataError, match=f"finite vectors of width {WIDTH}"):
        index.search(queries, top_k=3)


@pytest.mark.parametrize("name", [INDEX, STORIES, "story_ids.npy", "product_ids.npy", "product_vectors.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone", "another's"])
def test_a_damaged_index_is_refused(items: Items, tmp_path: Path, name: str, damage: str) -> None:
    build_index(make_items(num_stories=300, num_products=50), version=VERSION, folder=tmp_path / VERSION)
    path = tmp_path / VERSION / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gone":
        path.unlink()
    else:
        build_index(make_items(num_stories=200, num_products=40), version=OTHER, folder=tmp_path / OTHER)
        path.write_bytes((tmp_path / OTHER / name).read_bytes())
    with pytest.raises(ModelError):
        StoryIndex.load(tmp_path / VERSION, version=VERSION)


def test_a_crash_while_writing_leaves_the_old_index(
    items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = make_items(num_stories=300, num_products=50)
    folder = tmp_path / VERSION

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faiss, "serialize_index", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(few, version=VERSION, folder=folder)
    assert list(tmp_path.iterdir()) == []
    build_index(few, version=VERSION, folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "serialize_index", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(make_items(num_stories=200), version=VERSION, folder=folder)
    assert [path.name for path in tmp_path.iterdir()] == [VERSION]
    assert StoryIndex.load(folder, version=VERSION).info.num_stories == 300


def test_items_that_cannot_be_indexed_are_refused(tmp_path: Path) -> None:
    broken = make_items(num_stories=50, num_products=10)
    broken["story_match_vectors"][3, 2] = np.nan
    for items in (broken, make_items(num_stories=0)):
        with pytest.raises(ModelError, match="cannot be indexed"):
            build_index(items, version=VERSION, folder=tmp_path / VERSION)
    assert list(tmp_path.iterdir()) == []


def test_a_handful_of_stories_without_products_is_searched_exactly(tmp_path: Path) -> None:
    items = make_items(num_stories=3, num_products=0)
    index = build_index(items, version=VERSION, folder=tmp_path / VERSION)
    assert (index.info.num_cells, index.info.num_probed) == (1, 1)
    rows_QK, _ = index.search(items["story_match_vectors"][1:], top_k=10)
    np.testing.assert_array_equal(rows_QK, naive(items, items["story_match_vectors"][1:], top_k=3)[0])
    found, known = index.vectors(np.array([10]), domain=Domain.PRODUCT)
    assert (found.shape, known.tolist()) == ((0, WIDTH), [False])
