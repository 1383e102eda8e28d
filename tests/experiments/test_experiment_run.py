"""Methods over seeds in processes: what is finished is kept, and nothing of other settings is mixed in."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from experiment_world import contents, small_world, write_variant
from light_jobs import be_killed, fail, leave

from storyrec.config import Config, update_config
from storyrec.errors import ConfigError, DataError, ModelError
from storyrec.experiments.fit import RESULT, fit, pretrain, pretrained_folder, run_folder
from storyrec.experiments.methods import METHODS
from storyrec.experiments.results import Run
from storyrec.experiments.run import EXPERIMENT, Job, Plan, read_run, run_jobs, run_methods, run_searches
from storyrec.experiments.tuning import tuned
from storyrec.pretrain import DUAL_WEIGHTS
from trained import World

NAMES = ("MF", "YouTubeNet")
SEEDS = (0, 1)


def jobs(folder: Path, *work: Callable[[Path], None]) -> list[Job]:
    return [
        Job(f"job {number}", partial(one, folder / str(number)), folder / str(number))
        for number, one in enumerate(work)
    ]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_jobs_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("as it was")
    run_jobs(jobs(tmp_path, leave, fail, leave), title="things", num_jobs=2)
    assert left(tmp_path) == ["0", "1", "2"]
    assert (tmp_path / "1").read_text() == "as it was"
    run_jobs(jobs(tmp_path, fail, fail, fail), title="things", num_jobs=2)


def test_each_job_says_how_many_are_done_and_how_long_the_rest_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").write_text("done")
    run_jobs(jobs(tmp_path, leave, leave, leave), title="things", num_jobs=1)
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("things 1/2: job 1; about 0:00:0")
    assert second == "things 2/2: job 2; about 0:00:00 left"


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_a_failure_stops_what_waits_and_keeps_what_is_finished(num_jobs: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to learn from") as caught:
        run_jobs(jobs(tmp_path, leave, fail, *[leave] * 6), title="things", num_jobs=num_jobs)
    assert (caught.value.expected, caught.value.remedy) == ("clicks", "log clicks")
    assert caught.value.where == str(tmp_path / "1")
    assert left(tmp_path)[0] == "0"
    if num_jobs == 1:  # with two, how far the other gets in the meantime is chance
        assert left(tmp_path) == ["0"]


def test_a_killed_process_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a process was killed") as caught:
        run_jobs(jobs(tmp_path, leave, be_killed, leave), title="things", num_jobs=1)
    assert caught.value.where == "things: job 1"
    assert "--jobs" in caught.value.remedy
    assert left(tmp_path) == ["0"]


SHORT = {"aden": {"max_epochs": 2}}
"""What wins over tuned numbers, whatever the package holds of them."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small"))


def tuned_config(name: str, small: World) -> Config:
    """The settings that a method is fitted with here."""
    return update_config(update_config(small.config, tuned(METHODS[name])), SHORT)


@pytest.fixture(scope="module")
def finished(small: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, fitted in this process."""
    root = tmp_path_factory.mktemp("finished")
    for name in NAMES:
        for seed in SEEDS:
            fit(name, root=root, config=tuned_config(name, small), dataset=small.dataset, seed=seed)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def run(
    root: Path,
    small: World,
    *,
    names: Sequence[str] = NAMES,
    seeds: Sequence[int] = SEEDS,
    num_jobs: int = 1,
    **changed: Any,
) -> list[Run]:
    plan = Plan(seeds=seeds, num_jobs=num_jobs, overrides=changed.pop("overrides", SHORT))
    settings: dict[str, Any] = {"config": small.config, "dataset": small.dataset, "plan": plan} | changed
    return run_methods([METHODS[name] for name in names], root=root, **settings)


def test_finished_runs_are_taken_as_they_are(small: World, root: Path) -> None:
    path = run_folder(root, "YouTubeNet", seed=1) / RESULT
    result = json.loads(path.read_bytes())
    result["metrics"]["per_user_auc"] = 0.123
    path.write_text(json.dumps(result))
    before = contents(root / "runs")
    runs = run(root, small)
    assert [(found.method, found.seed) for found in runs] == [(name, seed) for name in NAMES for seed in SEEDS]
    assert runs[3].metrics["per_user_auc"] == 0.123
    assert (
        runs[0].metrics["per_user_auc"]
        == json.loads((run_folder(root, "MF", seed=0) / RESULT).read_bytes())["metrics"]["per_user_auc"]
    )
    assert contents(root / "runs") == before


def test_only_what_is_missing_is_run_and_a_process_of_its_own_finds_the_same_bits(
    small: World, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between runs: of a run under way there is at most a folder that is not seen."""
    run(root, small)
    before = contents(root / "runs")
    expected = read_run(run_folder(root, "MF", seed=1))
    shutil.rmtree(run_folder(root, "MF", seed=1))
    (root / "runs/mf/.seed-1.half").mkdir()
    (root / "runs/mf/.seed-1.half/scores.npy").write_bytes(b"half")
    shutil.rmtree(root / "checkpoints")
    (found,) = [one for one in run(root, small) if (one.method, one.seed) == ("MF", 1)]
    assert capsys.readouterr().err.splitlines() == ["methods 1/1: MF, seed 1; about 0:00:00 left"]
    assert (found.metrics, found.best_epoch) == (expected.metrics, expected.best_epoch)
    after = contents(root / "runs")
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {
        f"mf/seed-1/{name}" for name in ("scores.npy", "model.safetensors", RESULT)
    }
    for name in ("scores.npy", "model.safetensors"):
        assert after[f"mf/seed-1/{name}"][0] == before[f"mf/seed-1/{name}"][0]


def refused(root: Path, small: World, **changed: Any) -> ConfigError:
    before = contents(root)
    with pytest.raises(ConfigError) as caught:
        run(root, small, **changed)
    assert contents(root) == before
    assert "--out" in caught.value.remedy
    return caught.value


def test_runs_of_other_tuned_numbers_are_refused(small: World, root: Path) -> None:
    run(root, small)
    path = run_folder(root, "MF", seed=1) / RESULT
    result = json.loads(path.read_bytes())
    now = result["settings"]
    path.write_text(json.dumps(result | {"settings": now | {"learning_rate": 0.5, "max_epochs": 3}}))
    error = refused(root, small)
    assert error.found == (
        f"the folder holds runs of other settings: learning_rate was 0.5, now {now['learning_rate']}; "
        "max_epochs was 3, now 2"
    )
    assert error.where == str(path)
    # another method's numbers are no matter
    assert len(run(root, small, names=["YouTubeNet"])) == 2
    # what wins over them is compared before anything else
    assert (
        "aden.patience was 2, now 3" in refused(root, small, overrides={"aden": {"max_epochs": 2, "patience": 3}}).found
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": {"width": 32}}, "model.width was 16, now 32"),
        ({"features": {"sequence_length": 7}}, "features.sequence_length was 20, now 7"),
        ({"evaluation": {"num_candidates": 5}}, "evaluation.num_candidates was 13, now 5"),
        ({"dual": {"margin": 2.0}}, "dual.margin was 1.0, now 2.0"),
    ],
)
def test_runs_of_other_settings_are_refused(
    settings: dict[str, dict[str, Any]], said: str, small: World, root: Path
) -> None:
    run(root, small)
    error = refused(root, small, config=update_config(small.config, settings))
    assert error.found == f"the folder holds runs of other settings: {said}"
    assert error.where == str(root / EXPERIMENT)


def test_runs_on_another_dataset_are_refused(small: World, root: Path, tmp_path: Path) -> None:
    run(root, small)
    other = write_variant(small, tmp_path / "other")
    error = refused(root, small, dataset=other)
    assert f"dataset was {small.data.digest}, now a variant of {small.data.digest}" in error.found


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"method": "MF", "settings": {}}'])
def test_a_result_that_cannot_be_read_is_an_error(content: str, small: World, root: Path) -> None:
    path = run_folder(root, "MF", seed=1) / RESULT
    path.write_text(content)
    with pytest.raises((DataError, ConfigError)) as caught:
        run(root, small)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    assert path.read_text() == content


@pytest.mark.slow
def test_two_processes_find_what_one_finds(small: World, tmp_path: Path) -> None:
    """With a method that starts from pre-trained extractors, each from those of its own seed."""
    names = ("ADAPT", "MF")
    expected: list[Run] = []
    for seed in SEEDS:
        pretrain("DUAL", root=tmp_path / "here", config=small.config, dataset=small.dataset, seed=seed)
    for name in names:
        for seed in SEEDS:
            fit(name, root=tmp_path / "here", config=tuned_config(name, small), dataset=small.dataset, seed=seed)
            expected.append(read_run(run_folder(tmp_path / "here", name, seed=seed)))
    for num_jobs in (1, 2):
        root = tmp_path / str(num_jobs)
        found = run(root, small, names=names, num_jobs=num_jobs)
        assert [(one.method, one.seed, one.metrics, one.best_epoch) for one in found] == [
            (one.method, one.seed, one.metrics, one.best_epoch) for one in expected
        ]
        for seed in SEEDS:
            ours, theirs = (
                pretrained_folder(folder, "DUAL", seed=seed) / DUAL_WEIGHTS for folder in (root, tmp_path / "here")
            )
            assert ours.read_bytes() == theirs.read_bytes()


def test_pretraining_that_was_done_is_taken(small: World, root: Path) -> None:
    """And where all is done no process is started for it."""
    pretrain("DUAL", root=root, config=small.config, dataset=small.dataset, seed=0)
    fit("ADAPT", root=root, config=tuned_config("ADAPT", small), dataset=small.dataset, seed=0)
    before = contents(root / "pretrained")
    (found,) = run(root, small, names=["ADAPT"], seeds=[0], num_jobs=2)
    assert found == read_run(run_folder(root, "ADAPT", seed=0))
    assert contents(root / "pretrained") == before


def test_searches_under_other_settings_are_refused(small: World, root: Path) -> None:
    run(root, small)
    other = update_config(small.config, {"model": {"width": 32}})
    with pytest.raises(ConfigError, match=r"model\.width was 16, now 32"):
        run_searches([METHODS["MF"]], root=root, config=other, dataset=small.dataset, num_trials=1, num_jobs=1)
    assert not (root / "tuning").exists()
