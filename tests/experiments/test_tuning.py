"""The search of each method's settings: one budget, judged by validation alone, and no trial is lost."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_world import small_world, write_variant

from storyrec.config import update_config
from storyrec.errors import DataError, ModelError
from storyrec.experiments import tuning
from storyrec.experiments.fit import fit, pretrain, run_folder
from storyrec.experiments.methods import METHODS, ORIGINALS, TABLE_6
from storyrec.experiments.tuning import EPOCHS, INITIAL_SCALES, WEIGHT_DECAYS, tune, tuned, write_tuned
from trained import World


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A third of the training instances, and a number of epochs that is among those that are searched."""
    folder = tmp_path_factory.mktemp("small")
    world = small_world(folder)
    few = world.data.train.take(np.arange(0, len(world.data.train), 3))
    config = update_config(world.config, {"aden": {"max_epochs": EPOCHS[0]}})
    return World(config, write_variant(world, folder / "few", train=few))


def search(root: Path, small: World, *, num_trials: int, method: str = "MF", dataset: Path | None = None) -> list[Any]:
    tune(method, root=root, config=small.config, dataset=dataset or small.dataset, num_trials=num_trials)
    trials: list[Any] = json.loads((root / f"tuning/{method.lower()}/{num_trials}-trials.json").read_bytes())
    return trials


@pytest.fixture(scope="module")
def whole(small: World, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Five trials in one go: the last one is drawn from what the first ones found."""
    return search(tmp_path_factory.mktemp("whole"), small, num_trials=5)


def test_a_search_that_was_cut_off_goes_on_as_it_would_have(small: World, whole: list[Any], tmp_path: Path) -> None:
    assert search(tmp_path, small, num_trials=2) == whole[:2]
    assert search(tmp_path, small, num_trials=5) == whole
    assert search(tmp_path, small, num_trials=5) == whole  # nothing is left to do
    assert len({json.dumps(trial) for trial in whole}) == 5


def test_the_first_trial_is_the_present_values(small: World, whole: list[Any], tmp_path: Path) -> None:
    present = update_config(small.config, tuned(METHODS["MF"]))
    assert whole[0] == {
        "value": whole[0]["value"],
        "aden.learning_rate": present.aden.learning_rate,
        "aden.weight_decay": present.aden.weight_decay,
        "aden.max_epochs": present.aden.max_epochs,
        "model.initial_scale": present.model.initial_scale,
    }
    # its value is that of the run that an experiment makes with these values and that seed
    fit("MF", root=tmp_path, config=present, dataset=small.dataset, seed=0)
    result = json.loads((run_folder(tmp_path, "MF", seed=0) / "result.json").read_bytes())
    assert result["training"]["best_value"] == whole[0]["value"]
    for trial in whole[1:]:
        assert 3e-4 <= trial["aden.learning_rate"] <= 3e-2
        assert trial["aden.weight_decay"] in WEIGHT_DECAYS
        assert trial["aden.max_epochs"] in EPOCHS
        assert trial["model.initial_scale"] in INITIAL_SCALES


def test_present_values_come_first_though_the_first_trial_failed(
    small: World, whole: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        search(tmp_path, small, num_trials=1, dataset=tmp_path / "nowhere")
    assert search(tmp_path, small, num_trials=1) == whole[:1]


def test_held_out_impressions_are_never_read(small: World, whole: list[Any], tmp_path: Path) -> None:
    """Other labels, other targets and sequences that point nowhere change no trial."""
    holdout = small.data.holdout
    nowhere_B = np.full(len(holdout), 10**6)
    poisoned = replace(
        holdout,
        clicked_B=~holdout.clicked_B,
        story_rows_B=nowhere_B,
        story_start_B=nowhere_B,
        story_stop_B=nowhere_B + 1,
        product_start_B=nowhere_B,
        product_stop_B=nowhere_B + 1,
    )
    dataset = write_variant(small, tmp_path, holdout=poisoned)
    assert search(tmp_path, small, num_trials=2, dataset=dataset) == whole[:2]
    with pytest.raises(IndexError):  # an experiment does read them
        fit("MF", root=tmp_path, config=small.config, dataset=dataset, seed=0)


def test_diverged_trainings_count_against_the_budget(small: World, tmp_path: Path) -> None:
    stories = small.data.stories
    covers_NV = stories.visual_raw_NV.copy()
    covers_NV[1:] = np.nan
    dataset = write_variant(small, tmp_path, stories=replace(stories, visual_raw_NV=covers_NV))
    with pytest.raises(ModelError, match="diverged"):
        fit("MF", root=tmp_path, config=small.config, dataset=dataset, seed=0)
    trials = search(tmp_path, small, num_trials=3, dataset=dataset)
    assert [trial["value"] for trial in trials] == [None] * 3
    write_tuned([METHODS["MF"]], root=tmp_path, out=tmp_path / "tuned.toml")
    assert (tmp_path / "tuned.toml").read_text() == tuning.TUNED.read_text()


def test_winners_are_written_and_others_kept(small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"DIN": {"aden": {"learning_rate": 0.25}}, "MF": {"aden": {"learning_rate": 0.5, "max_epochs": 8}}}
    (tmp_path / "present.toml").write_text(
        "[DIN.aden]\nlearning_rate = 0.25\n[MF.aden]\nlearning_rate = 0.5\nmax_epochs = 8\n"
    )
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "present.toml")
    methods = [METHODS[name] for name in ("MF", "DIN", "NCF")]
    write_tuned(methods, root=tmp_path, out=tmp_path / "same.toml")
    assert tomllib.loads((tmp_path / "same.toml").read_text()) == present

    trials = search(tmp_path, small, num_trials=3)
    best = max(trials, key=lambda trial: trial["value"])
    write_tuned(methods, root=tmp_path, out=tmp_path / "tuned.toml")
    written = tomllib.loads((tmp_path / "tuned.toml").read_text())
    assert written == present | {
        "MF": {
            "aden": {name: best[f"aden.{name}"] for name in ("learning_rate", "weight_decay", "max_epochs")},
            "model": {"initial_scale": best["model.initial_scale"]},
        }
    }
    assert tuned(METHODS["MF"], file=tmp_path / "tuned.toml") == written["MF"]
    assert tuned(METHODS["NCF"], file=tmp_path / "tuned.toml") == {}


def test_variants_take_the_values_of_the_method_they_vary(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(
        "".join(f'["{name}".aden]\nmax_epochs = {len(name)}\n' for name in ("DIN", "ADAPT", "ADAPT w/o DUAL"))
    )
    names = {method.name: tuned(method, file=path)["aden"]["max_epochs"] for method in (*TABLE_6, ORIGINALS[0])}
    assert names["DIN (original)"] == len("DIN")
    assert names["ADAPT"] == names["V w. DUAL"] == len("ADAPT")
    assert names["ADAPT w/o DUAL"] == names["V w/o DUAL"] == names["T (product)"] == len("ADAPT w/o DUAL")
    assert tuned(METHODS["DIEN (original)"], file=path) == {}


def test_what_the_package_holds_are_settings_of_known_methods(small: World) -> None:
    for name, values in tomllib.loads(tuning.TUNED.read_text()).items():
        assert METHODS[name].tuned_as == ""
        present = update_config(small.config, values)
        assert present.aden.weight_decay in WEIGHT_DECAYS
        assert present.aden.max_epochs in EPOCHS
        assert present.model.initial_scale in INITIAL_SCALES


def test_pretrained_extractors_have_no_initial_scale_to_search(small: World, tmp_path: Path) -> None:
    pretrain("DUAL", root=tmp_path, config=small.config, dataset=small.dataset, seed=0)
    first, second = search(tmp_path, small, num_trials=2, method="ADAPT")
    assert first.keys() == second.keys() == {"value", "aden.learning_rate", "aden.weight_decay", "aden.max_epochs"}
