"""The worst failures, against scores that are set by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from storyrec.data.dataset import Dataset
from storyrec.errors import DataError
from storyrec.experiments.failures import METHODS, PRODUCT_ONLY, STORY_ONLY, Failures, assign_blame, write_failures
from storyrec.experiments.fit import run_folder
from trained import World

SEED = 3


@pytest.fixture(scope="module")
def data(world: World) -> Dataset:
    return world.data


def write_scores(root: Path, data: Dataset, *, generator_seed: int = 0) -> dict[str, np.ndarray]:
    """Drawn click probabilities of every method, as runs write them."""
    generator = np.random.default_rng(generator_seed)
    scores = {method: generator.random(len(data.holdout)).astype(np.float32) for method in METHODS}
    for method, scores_B in scores.items():
        folder = run_folder(root, method, seed=SEED)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "scores.npy", scores_B)
    return scores


@pytest.fixture
def scores(data: Dataset, tmp_path: Path) -> dict[str, np.ndarray]:
    return write_scores(tmp_path, data)


@pytest.fixture
def failures(data: Dataset, tmp_path: Path, scores: dict[str, np.ndarray]) -> Failures:
    return write_failures(tmp_path, data=data, seed=SEED, out=tmp_path / "failures", count=4)


def test_the_worst_are_those_farthest_from_the_label(
    failures: Failures, scores: dict[str, np.ndarray], data: Dataset
) -> None:
    clicked_B = data.holdout.clicked_B
    clicked, passed = np.flatnonzero(clicked_B), np.flatnonzero(~clicked_B)
    expected = clicked[np.argsort(scores["ADAPT"][clicked])][:4]
    assert [case.impression for case in failures.false_negatives] == expected.tolist()
    expected = passed[np.argsort(-scores["ADAPT"][passed])][:4]
    assert [case.impression for case in failures.false_positives] == expected.tolist()
    assert all(case.clicked for case in failures.false_negatives)
    assert not any(case.clicked for case in failures.false_positives)


def test_a_case_tells_what_each_method_said_and_what_the_user_clicked(
    failures: Failures, scores: dict[str, np.ndarray], data: Dataset
) -> None:
    for case in (*failures.false_negatives, *failures.false_positives):
        number, holdout = case.impression, data.holdout
        assert case.scores == {method: float(scores[method][number]) for method in METHODS}
        assert case.user_id == holdout.user_ids_B[number]
        assert case.title == data.stories.titles[holdout.story_rows_B[number]]
        log = data.product_clicks
        before_C = np.flatnonzero((log.user_ids_C == case.user_id) & (log.clicked_us_C < holdout.shown_us_B[number]))[
            -5:
        ][::-1]
        titles = [data.products.titles[row] for row in data.products.rows(log.item_ids_C[before_C])]
        assert list(case.product_clicks) == titles
        (mounted,) = case.mounted
        assert mounted.product_id - 500_000 == case.story_id - 1_000


def test_blame_is_counted() -> None:
    distances = {
        "both": np.array([0.5, 0.5, 0.5, 0.5, 0.0]),
        STORY_ONLY: np.array([0.1, 0.2, 0.6, 0.5, 0.0]),
        PRODUCT_ONLY: np.array([0.9, 0.4, 0.3, 0.9, 0.0]),
    }
    blame = assign_blame(distances, model="both", label="all", among_B=np.array([True, True, True, True, False]))
    assert blame.num_impressions == 4
    assert blame.story_nearer == 2 / 4
    assert blame.story_nearer_product_farther == 1 / 4
    assert blame.product_nearer == 2 / 4
    nothing = assign_blame(distances, model="both", label="clicked", among_B=np.zeros(5, bool))
    assert nothing.story_nearer is None


def test_the_files_say_the_same(
    failures: Failures, scores: dict[str, np.ndarray], data: Dataset, tmp_path: Path
) -> None:
    written = json.loads((tmp_path / "failures" / "failures.json").read_text())
    assert [case["impression"] for case in written["false_positives"]] == [
        case.impression for case in failures.false_positives
    ]
    label_B = data.holdout.clicked_B.astype(float)
    farther_B = np.abs(scores["ADAPT"] - label_B) > np.abs(scores["ADAPT w/o DUAL"] - label_B)
    assert written["dual_farther"] == pytest.approx(farther_B.mean())
    assert [blame["num_impressions"] for blame in written["blame"]] == [
        len(label_B),
        int(label_B.sum()),
        int((1 - label_B).sum()),
    ] * 2
    page = (tmp_path / "failures" / "failures.html").read_text()
    for case in failures.false_negatives:
        assert f"{case.scores['ADAPT']:.4f}" in page
        assert case.title in page
    assert "http" not in page


def test_more_failures_than_there_are_is_all(data: Dataset, tmp_path: Path, scores: dict[str, np.ndarray]) -> None:
    failures = write_failures(tmp_path, data=data, seed=SEED, out=tmp_path / "all", count=10**6)
    assert len(failures.false_negatives) + len(failures.false_positives) == len(data.holdout)


def test_a_missing_run_is_named(data: Dataset, tmp_path: Path, scores: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"no run of 'V\+T \(storytelling\)' with seed 8[\s\S]*experiment table6"):
        write_failures(tmp_path, data=data, seed=8, out=tmp_path / "failures")
    assert not (tmp_path / "failures").exists()


@pytest.mark.parametrize("fault", ["short", "nan"])
def test_scores_of_something_else_are_refused(
    data: Dataset, tmp_path: Path, scores: dict[str, np.ndarray], fault: str
) -> None:
    wrong_B = scores["ADAPT"][1:] if fault == "short" else np.full_like(scores["ADAPT"], np.nan)
    np.save(run_folder(tmp_path, "ADAPT", seed=SEED) / "scores.npy", wrong_B)
    with pytest.raises(DataError, match="'ADAPT' are not those of this dataset"):
        write_failures(tmp_path, data=data, seed=SEED, out=tmp_path / "failures")
