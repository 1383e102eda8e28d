"""One method and one seed: what is written, that a seed decides it all, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from experiment_world import contents, mask_clicks, small_world, write_variant
from scipy.special import expit, logit

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError, ModelError
from storyrec.experiments.fit import (
    RESULT,
    SCORES,
    WEIGHTS,
    build_model,
    fit,
    open_dataset,
    pretrain,
    pretrained_folder,
    run_folder,
)
from storyrec.experiments.methods import METHODS
from storyrec.finetune import ClickStage
from storyrec.metrics import summarize
from storyrec.pretrain import DUAL_WEIGHTS
from trained import World

METHOD = "ADAPT w/o DUAL"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def root(small: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of experiments with one finished run: seed 0."""
    root = tmp_path_factory.mktemp("root")
    fit(METHOD, root=root, config=small.config, dataset=small.dataset, seed=0)
    return root


def read_result(root: Path, *, seed: int, method: str = METHOD) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_folder(root, method, seed=seed) / RESULT).read_bytes())
    return result


def test_a_seed_decides_every_bit(small: World, root: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        fit(METHOD, root=tmp_path, config=small.config, dataset=small.dataset, seed=seed)
    first, again, other = (
        run_folder(folder, METHOD, seed=seed) for folder, seed in ((root, 0), (tmp_path, 0), (tmp_path, 1))
    )
    for name in (SCORES, WEIGHTS):
        assert (first / name).read_bytes() == (again / name).read_bytes() != (other / name).read_bytes()
    assert read_result(root, seed=0)["metrics"] == read_result(tmp_path, seed=0)["metrics"]
    ours, theirs = (read_result(tmp_path, seed=seed)["metrics"] for seed in (0, 1))
    assert ours["per_user_auc"] != theirs["per_user_auc"]
    assert ours["click_rate"] == theirs["click_rate"]


def test_a_seed_decides_the_initial_weights_and_nothing_else(small: World) -> None:
    _, _, products = open_dataset(small.dataset, max_words=small.config.features.max_title_words)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        build_model(METHODS[METHOD], config=small.config, data=small.data, products=products, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.rand(1) == expected  # the process's own draws go on as they were
    for name in ("extractors.visual_projection.weight", "ranker.story_attention.query.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_metrics_are_those_of_the_scores(small: World, root: Path) -> None:
    holdout, evaluation = small.data.holdout, small.config.evaluation
    expected = summarize(
        holdout.user_ids_B,
        holdout.clicked_B,
        np.load(run_folder(root, METHOD, seed=0) / SCORES).astype(np.float64),
        num_candidates=evaluation.num_candidates,
        top_k=evaluation.top_k,
        seed=evaluation.seed,
    )
    assert read_result(root, seed=0)["metrics"] == pytest.approx(expected, abs=1e-6)
    assert expected["per_user_auc"] > 0.55  # something was learned, so the scores are not those of a fresh model


def test_scores_are_the_saved_weights_calibrated_by_validation(small: World, root: Path) -> None:
    """One offset for all logits, such that validation's mean probability is its click rate."""
    data, stories, products = open_dataset(small.dataset, max_words=small.config.features.max_title_words)
    model = build_model(METHODS[METHOD], config=small.config, data=data, products=products, seed=9)
    folder = run_folder(root, METHOD, seed=0)
    model.load_state_dict(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
    stage = ClickStage(
        model.eval(),
        data=data,
        stories=stories,
        products=products,
        batch_size=64,
        sequence_length=small.config.features.sequence_length,
        num_time_blocks=small.config.model.num_time_blocks,
    )
    with torch.inference_mode():
        validation_B, holdout_B = (stage.score(part, np.arange(len(part))) for part in (data.validation, data.holdout))
    offsets_B = logit(np.load(folder / SCORES).astype(np.float64)) - holdout_B
    assert offsets_B == pytest.approx(np.full(len(offsets_B), offsets_B[0]), abs=1e-4)
    click_rate = data.validation.clicked_B.mean()
    assert expit(validation_B + offsets_B.mean()).mean() == pytest.approx(click_rate, abs=1e-4)
    # without it: training has as many non-clicks as clicks
    assert expit(validation_B).mean() > click_rate + 0.1
    metrics = read_result(root, seed=0)["metrics"]
    assert metrics["mean_score"] == pytest.approx(click_rate, abs=0.05)
    uncalibrated = np.logaddexp(0.0, np.where(data.holdout.clicked_B, -holdout_B, holdout_B)).mean()
    assert metrics["log_loss"] < uncalibrated


def test_result_says_what_was_trained_and_how(small: World, root: Path) -> None:
    result, aden = read_result(root, seed=0), small.config.aden
    weights = safetensors.torch.load((run_folder(root, METHOD, seed=0) / WEIGHTS).read_bytes())
    assert (result["method"], result["group"], result["seed"]) == (METHOD, "cross-domain", 0)
    assert result["dataset"] == small.data.digest
    assert result["num_parameters"] == sum(weight.numel() for weight in weights.values())
    assert result["settings"]["learning_rate"] == aden.learning_rate
    assert (result["settings"]["max_epochs"], result["settings"]["batch_size"]) == (2, 32)
    assert [entry["epoch"] for entry in result["training"]["curves"]] == [0, 1, 2]


def test_a_method_with_dual_starts_from_the_extractors_of_its_seed(small: World, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        fit("ADAPT", root=tmp_path, config=small.config, dataset=small.dataset, seed=3)
    assert not run_folder(tmp_path, "ADAPT", seed=3).exists()
    for seed in (3, 4):
        pretrain("DUAL", root=tmp_path, config=small.config, dataset=small.dataset, seed=seed)
    frozen = update_config(small.config, {"aden": {"freeze_extractors": True}})
    fit("ADAPT", root=tmp_path, config=frozen, dataset=small.dataset, seed=3)
    trained = safetensors.torch.load((run_folder(tmp_path, "ADAPT", seed=3) / WEIGHTS).read_bytes())
    three, four = (
        safetensors.torch.load((pretrained_folder(tmp_path, "DUAL", seed=seed) / DUAL_WEIGHTS).read_bytes())
        for seed in (3, 4)
    )
    name = "extractors.visual_projection.weight"
    assert torch.equal(trained[name], three[name])
    assert not torch.equal(trained[name], four[name])


def without_covers(data: Dataset) -> dict[str, Any]:
    return {
        name: replace(catalog, visual_raw_NV=np.zeros_like(catalog.visual_raw_NV))
        for name, catalog in (("stories", data.stories), ("products", data.products))
    }


@pytest.mark.parametrize(
    ("method", "spoil", "settings", "said"),
    [
        ("MF", lambda data: mask_clicks(data, "train", clicked=True), {}, "650 clicked of 650 training impressions"),
        ("MF", lambda data: mask_clicks(data, "train", clicked=False), {}, "0 clicked of 650 training impressions"),
        ("MF", lambda data: mask_clicks(data, "validation", clicked=False), {}, "no validation user has both"),
        ("MF", lambda data: mask_clicks(data, "holdout", clicked=True), {}, "no held-out user has both"),
        ("MF", lambda data: {"holdout": data.holdout.take(np.arange(0))}, {}, "no held-out user has both"),
        ("MF", lambda _: {}, {"features": {"vocabulary_size": 26}}, "the vocabulary has 27 words"),
        ("V (product)", without_covers, {}, "no item has a cover, and 'V (product)' reads nothing else"),
    ],
)
def test_what_nobody_could_learn_from_or_be_judged_by_is_refused(
    method: str,
    spoil: Callable[[Dataset], dict[str, Any]],
    settings: dict[str, dict[str, Any]],
    said: str,
    small: World,
    tmp_path: Path,
) -> None:
    dataset = write_variant(small, tmp_path / "variant", **spoil(small.data))
    with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")) as caught:
        fit(method, root=tmp_path / "root", config=update_config(small.config, settings), dataset=dataset, seed=0)
    assert caught.value.expected
    assert caught.value.where == str(dataset)
    assert caught.value.remedy
    assert contents(tmp_path / "root") == {}


@pytest.mark.slow
@pytest.mark.parametrize("num_writes", [8, 13])
def test_killed_fit_ends_with_the_same_bits(num_writes: int, small: World, root: Path, tmp_path: Path) -> None:
    """SIGKILL after a whole checkpoint (even) or between its tensors and its state (odd)."""
    config: Config = small.config
    (tmp_path / "config.json").write_text(config.model_dump_json())
    tests = Path(__file__).parents[1]
    command = [sys.executable, str(Path(__file__).with_name("killed_fit.py")), METHOD, str(tmp_path)]
    answer = subprocess.run(
        [*command, str(small.dataset), str(num_writes)], env={**os.environ, "PYTHONPATH": str(tests)}, check=False
    )
    assert answer.returncode == -9
    assert not run_folder(tmp_path, METHOD, seed=0).exists()
    (state,) = (tmp_path / "checkpoints").glob("*/state.json")
    assert '"finished": false' in state.read_text()
    assert json.loads(state.read_text())["state"]["step"] > 0

    fit(METHOD, root=tmp_path, config=config, dataset=small.dataset, seed=0)
    ours, expected = (run_folder(folder, METHOD, seed=0) for folder in (tmp_path, root))
    for name in (WEIGHTS, SCORES):
        assert (ours / name).read_bytes() == (expected / name).read_bytes()
    assert read_result(tmp_path, seed=0)["metrics"] == read_result(root, seed=0)["metrics"]
