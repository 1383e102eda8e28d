"""The rating sheet is blind and can be unblinded; what comes back is averaged, tested and checked."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from storyrec.bundle import Bundle
from storyrec.config import Config
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError, ModelError
from storyrec.experiments.rating_sheet import (
    WITH,
    WITHOUT,
    MatchVectors,
    make_rating_sheet,
    read_vectors,
    write_rating_sheet,
)
from storyrec.experiments.ratings import COLUMNS, evaluate_ratings, markdown_table, write_ratings
from trained import World

NUM_PRODUCTS = 30
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(world: World) -> Dataset:
    return world.data


def vectors(data: Dataset, seed: int) -> MatchVectors:
    generator = np.random.default_rng(seed)
    stories_NM, products_NM = (
        generator.normal(size=(len(items), 6)).astype(np.float32) for items in (data.stories, data.products)
    )
    return MatchVectors(stories_NM, products_NM)


def make(data: Dataset, out: Path, *, seed: int = 7, num_products: int = NUM_PRODUCTS) -> dict[str, Any]:
    make_rating_sheet(
        data,
        without_dual=vectors(data, 1),
        with_dual=vectors(data, 2),
        seed=seed,
        out=out,
        num_products=num_products,
    )
    return json.loads((out / "key.json").read_text())


@pytest.fixture
def key(data: Dataset, tmp_path: Path) -> dict[str, Any]:
    return make(data, tmp_path)


def filled(key: dict[str, Any], rater: str, rate: Callable[[str, int], tuple[int, int, int]]) -> Rows:
    """A rater's rows; `rate` knows the method and which of the five products it is."""
    return [
        dict(
            zip(
                COLUMNS, (key["sheet"], rater, product["product_id"], side, *rate(story["method"], number)), strict=True
            )
        )
        for number, product in enumerate(key["products"][:5])
        for side, story in zip("AB", product["stories"], strict=True)
    ]


def write(path: Path, rows: Rows, *, columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_each_product_comes_with_the_nearest_story_of_either_extractor(key: dict[str, Any], data: Dataset) -> None:
    assert len({product["product_id"] for product in key["products"]}) == NUM_PRODUCTS
    for product in key["products"]:
        row = int(data.products.rows(product["product_id"]))
        assert product["title"] == data.products.titles[row]
        stories = {story["method"]: story for story in product["stories"]}
        for method, own in ((WITHOUT, vectors(data, 1)), (WITH, vectors(data, 2))):
            distances_N = np.linalg.norm(own.stories_NM[1:] - own.products_NM[row], axis=1)
            nearest = 1 + int(np.argmin(distances_N))
            assert stories[method]["story_id"] == data.stories.item_ids_N[nearest]
            assert stories[method]["title"] == data.stories.titles[nearest]


def test_a_coin_decides_the_order_and_the_sheet_does_not_tell(key: dict[str, Any], tmp_path: Path) -> None:
    first = [product["stories"][0]["method"] for product in key["products"]]
    assert NUM_PRODUCTS // 4 < first.count(WITH) < 3 * NUM_PRODUCTS // 4
    page = (tmp_path / "sheet.html").read_text()
    assert "DUAL" not in page
    assert "http" not in page
    sheet = json.loads(re.search(r"const sheet = (.*);\n", page)[1])
    assert sheet["name"] == key["sheet"]
    for shown, product in zip(sheet["products"], key["products"], strict=True):
        assert set(shown) == {"id", "title", "stories"}
        assert shown["id"] == product["product_id"]
        assert shown["stories"] == [story["title"] for story in product["stories"]]


def test_the_seed_decides_the_sheet_and_a_key_is_never_lost(data: Dataset, key: dict[str, Any], tmp_path: Path) -> None:
    assert make(data, tmp_path) == key
    other = make(data, tmp_path / "other", seed=8)
    assert [p["product_id"] for p in other["products"]] != [p["product_id"] for p in key["products"]]
    with pytest.raises(DataError, match="the key of another sheet"):
        make(data, tmp_path, seed=8)
    assert json.loads((tmp_path / "key.json").read_text()) == key


def test_few_products_are_all_shown(data: Dataset, tmp_path: Path) -> None:
    key = make(data, tmp_path, num_products=10**6)
    assert len(key["products"]) == len(data.products) - 1
    assert make(data, tmp_path / "three", num_products=3)["num_picked"] == 3


def test_vectors_of_a_snapshot_are_those_of_its_bundle(
    world: World, data: Dataset, packed: Path, tmp_path: Path
) -> None:
    found = read_vectors(packed / "dual.safetensors", config=world.config, data=data)
    expected = np.load(packed / "items" / "product_match_vectors.npy")
    np.testing.assert_allclose(found.products_NM, expected, atol=1e-6)
    fine_tuned = read_vectors(packed / "aden.safetensors", config=world.config, data=data)
    assert np.abs(fine_tuned.stories_NM - found.stories_NM).max() > 0.1
    with pytest.raises(ModelError, match="cannot be read"):
        read_vectors(tmp_path / "none.safetensors", config=world.config, data=data)


def test_averages_and_tests_are_by_method_whatever_the_side(key: dict[str, Any], tmp_path: Path) -> None:
    def rate(shift: int) -> Callable[[str, int], tuple[int, int, int]]:
        return lambda method, number: (
            (4 + (number + shift) % 2, 1 + number, 2) if method == WITH else (2 + number % 2, 5 - number, 2)
        )

    sheets = [
        write(tmp_path / f"{name}.csv", filled(key, name, rate(shift))) for shift, name in enumerate(("ann", "bo"))
    ]
    ratings = evaluate_ratings(sheets, key=tmp_path / "key.json")
    assert (ratings.num_raters, ratings.num_pairs, ratings.sheet) == (2, 10, key["sheet"])
    with_Q = np.array([4 + (number + shift) % 2 for shift in range(2) for number in range(5)], float)
    without_Q = np.array([2 + number % 2 for number in range(5)] * 2, float)
    matching = ratings.questions["matching"]
    assert matching.with_dual == pytest.approx(with_Q.mean())
    assert matching.without_dual == pytest.approx(without_Q.mean())
    assert matching.p_pairs == pytest.approx(ttest_rel(with_Q, without_Q).pvalue)
    means = with_Q.reshape(2, 5).mean(axis=1), without_Q.reshape(2, 5).mean(axis=1)
    assert matching.p_raters == pytest.approx(ttest_rel(*means).pvalue)
    assert ratings.questions["interesting"].with_dual == pytest.approx(3.0)
    assert ratings.questions["interesting"].without_dual == pytest.approx(3.0)
    assert ratings.questions["purchasing"].p_pairs is None  # all differences are 0
    write_ratings(ratings, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "ratings.json").read_text())
    assert written["questions"]["matching"]["with_dual"] == pytest.approx(with_Q.mean())
    table = (tmp_path / "out" / "ratings.md").read_text()
    assert f"| matching | {without_Q.mean():.2f} | {with_Q.mean():.2f} |" in table
    assert table == markdown_table(ratings)
    assert "| 3.12 | 3.82 |" in table


def test_one_rater_has_averages_and_no_test_over_raters(key: dict[str, Any], tmp_path: Path) -> None:
    rows = filled(key, "ann", lambda method, number: (5, 1 + number, 3) if method == WITH else (1, 1, 3))
    ratings = evaluate_ratings([write(tmp_path / "ann.csv", rows)], key=tmp_path / "key.json")
    assert ratings.questions["matching"].with_dual == 5.0
    assert ratings.questions["interesting"].p_pairs is not None
    assert ratings.questions["interesting"].p_raters is None


def spoil(rows: Rows, number: int, **changes: Any) -> Rows:
    return [row | changes if place == number else row for place, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("fault", "said", "line"),
    [
        (lambda rows: spoil(rows, 2, matching=7), "the rating '7' of 'matching'", 4),
        (lambda rows: spoil(rows, 0, purchasing=""), "the rating '' of 'purchasing'", 2),
        (lambda rows: spoil(rows, 1, interesting="3.5"), "the rating '3.5' of 'interesting'", 3),
        (lambda rows: spoil(rows, 3, product_id=12), "product '12' is unknown", 5),
        (lambda rows: spoil(rows, 3, story="C"), "story 'C' is unknown", 5),
        (lambda rows: spoil(rows, 9, rater=" "), "nobody is named as the rater", 11),
        (lambda rows: spoil(rows, 4, sheet="abc"), "a row of sheet 'abc'", 6),
        (lambda rows: [*rows, rows[0]], "is rated twice by 'ann'", 12),
        (lambda rows: rows[:-1], "rated only story A", 10),
        (lambda rows: rows[:-2], "'ann' rated 4 products", 8),
        (lambda rows: [], "the file holds no ratings", 2),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    key: dict[str, Any], tmp_path: Path, fault: Callable[[Rows], Rows], said: str, line: int
) -> None:
    rows = filled(key, "ann", lambda method, number: (3, 3, 3))
    path = write(tmp_path / "ann.csv", fault(rows))
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        evaluate_ratings([path], key=tmp_path / "key.json")
    assert caught.value.where == f"{path}, line {line}"


def test_a_missing_column_is_named(key: dict[str, Any], tmp_path: Path) -> None:
    rows = filled(key, "ann", lambda method, number: (3, 3, 3))
    columns = tuple(column for column in COLUMNS if column != "interesting")
    with pytest.raises(DataError, match="no column interesting"):
        evaluate_ratings([write(tmp_path / "ann.csv", rows, columns=columns)], key=tmp_path / "key.json")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        evaluate_ratings([tmp_path / "empty.csv"], key=tmp_path / "key.json")


def test_files_that_are_no_files_are_named(key: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file cannot be read"):
        evaluate_ratings([tmp_path / "nobody.csv"], key=tmp_path / "key.json")
    with pytest.raises(DataError, match="the key cannot be read"):
        evaluate_ratings([], key=tmp_path / "sheet.html")
    with pytest.raises(DataError, match="no filled sheets"):
        evaluate_ratings([], key=tmp_path / "key.json")


def test_the_sheet_is_made_from_finished_runs(world: World, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no experiments in this folder[\s\S]*experiment table6"):
        write_rating_sheet(tmp_path, config=Config(), seed=0, out=tmp_path / "sheet")
    shutil.copytree(world.dataset, tmp_path / "dataset")
    (tmp_path / "data.json").write_text("{}")
    facts = world.config.model_dump(mode="json", include={"features", "model"})
    (tmp_path / "experiment.json").write_text(json.dumps(facts))
    fine_tuned = tmp_path / "runs" / "adapt-w-o-dual" / "seed-0" / "model.safetensors"
    fine_tuned.parent.mkdir(parents=True)
    shutil.copy(packed / "aden.safetensors", fine_tuned)
    with pytest.raises(DataError, match=r"no dual.safetensors of seed 0[\s\S]*experiment table6"):
        write_rating_sheet(tmp_path, config=Config(), seed=0, out=tmp_path / "sheet")
    pretrained = tmp_path / "pretrained" / "dual" / "seed-0" / "dual.safetensors"
    pretrained.parent.mkdir(parents=True)
    shutil.copy(packed / "dual.safetensors", pretrained)
    write_rating_sheet(tmp_path, config=Config(), seed=0, out=tmp_path / "sheet")
    key = json.loads((tmp_path / "sheet" / "key.json").read_text())
    bundle = Bundle.load(packed)
    for product in key["products"]:
        (found,) = (story["story_id"] for story in product["stories"] if story["method"] == WITH)
        product_M = bundle.products.match_NM[bundle.products.rows(product["product_id"])]
        distances_N = np.linalg.norm(bundle.stories.match_NM[1:] - product_M, axis=1)
        distance = distances_N[bundle.stories.rows(found) - 1]
        assert distance == pytest.approx(distances_N.min(), abs=1e-4)
