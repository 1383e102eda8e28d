"""What methods are compared with: each score recomputed in plain Python, and the oracle above all that learns."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from experiment_world import simulate_marketplace, small_world

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.evaluate import popularity, true_probabilities
from storyrec.experiments import references
from storyrec.experiments.fit import fit, pretrain, run_folder
from storyrec.experiments.methods import TABLE_4
from storyrec.experiments.prepare import Prepared, prepare
from storyrec.experiments.references import score_references, title_probe
from storyrec.experiments.run import read_run
from storyrec.metrics import per_user_auc, summarize
from trained import World

Vector = dict[str, float]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("simulated")
    return prepare(Config(), data=simulate_marketplace(root, num_users=150), root=root / "experiments")


def normalized(vector: Vector) -> Vector:
    length = math.sqrt(sum(value**2 for value in vector.values()))
    return {word: value / length for word, value in vector.items()} if length else {}


def naive_title_probe(data: Dataset, row: int) -> float:
    """With idf = ln((1 + n) / (1 + df)) + 1, every title and every mean of titles of length 1."""
    titles = [*data.stories.titles, *data.products.titles]
    num_with = Counter(word for title in titles for word in set(title.split()))

    def vector(title: str) -> Vector:
        counts = Counter(title.split())
        return normalized(
            {word: n * (math.log((1 + len(titles)) / (1 + num_with[word])) + 1) for word, n in counts.items()}
        )

    holdout = data.holdout
    target = vector(data.stories.titles[holdout.story_rows_B[row]])
    cosines = []
    for catalog, rows_C, start_B, stop_B in (
        (data.stories, data.story_click_rows_C, holdout.story_start_B, holdout.story_stop_B),
        (data.products, data.product_click_rows_C, holdout.product_start_B, holdout.product_stop_B),
    ):
        pooled: Counter[str] = Counter()
        for item in rows_C[start_B[row] : stop_B[row]]:
            pooled.update(vector(catalog.titles[item]))  # type: ignore[arg-type]
        cosines.append(sum(target.get(word, 0.0) * value for word, value in normalized(dict(pooled)).items()))
    return sum(cosines) / 2


def test_title_probe_is_the_mean_cosine_of_weighted_titles(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.data
    rows = range(0, len(data.holdout), 9)
    expected = [naive_title_probe(data, row) for row in rows]
    assert title_probe(data, data.holdout)[rows] == pytest.approx(expected, abs=1e-9)
    assert min(expected) >= 0
    assert 0.2 < max(expected) <= 1
    # whatever is computed at a time
    monkeypatch.setattr(references, "BLOCK", 7)
    assert title_probe(data, data.holdout)[rows] == pytest.approx(expected, abs=1e-9)


def test_a_user_without_clicks_has_a_probe_of_zero(small: World) -> None:
    data = small.data
    nothing = data.holdout.take(np.arange(5)).with_sequences(
        story_clicks=data.story_clicks, product_clicks=data.product_clicks, history_days=7, length=0
    )
    assert list(title_probe(data, nothing)) == [0.0] * 5


def test_popularity_counts_the_clicks_in_training(small: World) -> None:
    data = small.data
    clicks = Counter(
        story for story, clicked in zip(data.train.story_rows_B, data.train.clicked_B, strict=True) if clicked
    )
    assert list(popularity(data)) == [clicks[story] for story in data.holdout.story_rows_B]
    assert max(clicks.values()) > 3


def test_figures_are_of_the_held_out_impressions_and_no_oracle_without_a_truth(small: World) -> None:
    data, settings = small.data, small.config.evaluation
    assert small.config.locations.truth
    figures = score_references(update_config(small.config, {"locations": {"truth": ""}}), data)
    assert list(figures) == ["popularity", "title probe"]
    for name, scores_B in (("popularity", popularity(data)), ("title probe", title_probe(data, data.holdout))):
        expected = summarize(
            data.holdout.user_ids_B,
            data.holdout.clicked_B,
            scores_B,
            num_candidates=settings.num_candidates,
            top_k=settings.top_k,
            seed=settings.seed,
        )
        assert figures[name] == pytest.approx(expected, nan_ok=True)
    assert figures["title probe"]["per_user_auc"] > 0.6  # titles share their cluster's word
    assert figures["popularity"]["per_user_auc"] == pytest.approx(0.5, abs=0.1)


def test_the_oracle_is_judged_where_the_truth_is_known_and_wins(simulated: Prepared) -> None:
    data = Dataset.load(simulated.dataset)
    figures = score_references(simulated.config, data)
    assert list(figures) == ["oracle", "popularity", "title probe"]
    truth_B = true_probabilities(simulated.config, data)
    assert truth_B is not None
    known_B = np.isfinite(truth_B)
    assert known_B.all()
    holdout = data.holdout
    expected = per_user_auc(holdout.user_ids_B, holdout.clicked_B, truth_B).mean
    assert figures["oracle"]["per_user_auc"] == expected
    assert figures["oracle"]["num_impressions"] == len(holdout)
    assert figures["oracle"]["mean_score"] == pytest.approx(figures["oracle"]["click_rate"], abs=0.02)
    for name in ("popularity", "title probe"):
        assert figures["oracle"]["per_user_auc"] > figures[name]["per_user_auc"] + 0.05


def test_the_oracle_is_silent_where_the_truth_is_not_known(simulated: Prepared, tmp_path: Path) -> None:
    data = Dataset.load(simulated.dataset)
    (path,) = Path(simulated.config.locations.truth, f"impressions/dt={data.day}").glob("*.parquet")
    truth = pq.read_table(path, partitioning=None)
    part = tmp_path / f"impressions/dt={data.day}/part-0.parquet"
    part.parent.mkdir(parents=True)
    pq.write_table(truth.filter(pc.less(truth["user_id"], 100)), part)
    config = update_config(simulated.config, {"locations": {"truth": str(tmp_path)}})
    known_B = data.holdout.user_ids_B < 100
    truth_B = true_probabilities(simulated.config, data)
    assert truth_B is not None
    expected = per_user_auc(data.holdout.user_ids_B[known_B], data.holdout.clicked_B[known_B], truth_B[known_B])
    figures = score_references(config, data)
    assert figures["oracle"]["num_impressions"] == known_B.sum() < len(known_B)
    assert figures["oracle"]["per_user_auc"] == expected.mean
    assert figures["popularity"]["num_impressions"] == len(known_B)


@pytest.mark.slow
def test_no_method_is_above_the_oracle(simulated: Prepared, tmp_path: Path) -> None:
    config = update_config(
        simulated.config, {"model": {"width": 32}, "dual": {"max_steps": 100}, "aden": {"max_epochs": 3}}
    )
    figures = score_references(config, Dataset.load(simulated.dataset))
    pretrain("DUAL", root=tmp_path, config=config, dataset=simulated.dataset, seed=0)
    for method in TABLE_4:
        fit(method.name, root=tmp_path, config=config, dataset=simulated.dataset, seed=0)
        metrics = read_run(run_folder(tmp_path, method.name, seed=0)).metrics
        assert metrics["per_user_auc"] < figures["oracle"]["per_user_auc"] - 0.02, method.name
        assert metrics["log_loss"] > figures["oracle"]["log_loss"], method.name
