"""Run methods over seeds in a few processes; what is finished is kept, so a run that was cut off goes on.

The folder of experiments: `experiment.json` (what everything in it rests on), `pretrained/<way>/seed-<n>/`,
`runs/<method>/seed-<n>/`, `checkpoints/` of runs under way.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.errors import ConfigError, ModelError
from storyrec.experiments.claims import claim, differences, read_json, unreadable
from storyrec.experiments.fit import RESULT, fit, pretrain, pretrained_folder, run_folder, tuned_numbers
from storyrec.experiments.methods import Method, Settings
from storyrec.experiments.results import Run
from storyrec.experiments.tuning import TUNED, search_folder, tune, tuned
from storyrec.pretrain import DUAL_WEIGHTS
from storyrec.processes import process_pool
from storyrec.progress import track

FORMAT = 1
EXPERIMENT = "experiment.json"
SECTIONS = ("features", "model", "dual", "aden", "evaluation")


@dataclass(frozen=True)
class Job:
    """A piece of work that leaves a file when it is done.

    Attributes:
        name: what it is, for a person.
        work: does it; picklable.
        done: the file that says it is done.
    """

    name: str
    work: Callable[[], None]
    done: Path


@dataclass(frozen=True)
class Plan:
    """Which runs of every method, and how.

    Attributes:
        seeds: one run each.
        num_jobs: processes at a time.
        overrides: settings that win over the tuned ones.
        tuned: file of the tuned settings, as `tuning.write_tuned` writes it.
    """

    seeds: Sequence[int]
    num_jobs: int
    overrides: Settings = field(default_factory=dict)
    tuned: Path = TUNED


def run_methods(
    methods: Sequence[Method],
    *,
    root: Path,
    config: Config,
    dataset: Path,
    plan: Plan,
) -> list[Run]:
    """Fit every method with every seed, pre-training what they start from first.

    Args:
        methods: what to compare.
        root: folder of the experiments; finished runs in it are taken as they are.
        config: the settings that all methods share; each takes its tuned numbers besides.
        dataset: folder that `build_dataset` wrote.
        plan: which runs, and how.

    Returns:
        All runs, methods in the given order, then by seed.

    Raises:
        ConfigError: the folder holds runs of other settings.
        DataError, ModelError: a run failed; those that were finished are kept.
    """
    config = update_config(config, plan.overrides)
    claim_root(root, config=config, digest=Dataset.load(dataset).digest)
    settings = {
        method.name: update_config(update_config(config, tuned(method, file=plan.tuned)), plan.overrides)
        for method in methods
    }
    for method in methods:
        for seed in plan.seeds:
            _check_run(
                run_folder(root, method.name, seed=seed), config=update_config(settings[method.name], method.settings)
            )
    common: dict[str, Any] = {"root": root, "dataset": dataset}
    pretrainings = list(dict.fromkeys(method.pretraining for method in methods if method.pretraining))
    run_jobs(
        [
            Job(
                f"{name}, seed {seed}",
                partial(pretrain, name, config=config, seed=seed, **common),
                pretrained_folder(root, name, seed=seed) / DUAL_WEIGHTS,
            )
            for seed in plan.seeds
            for name in pretrainings
        ],
        title="pre-training",
        num_jobs=plan.num_jobs,
    )
    run_jobs(
        [
            Job(
                f"{method.name}, seed {seed}",
                partial(fit, method.name, config=settings[method.name], seed=seed, **common),
                run_folder(root, method.name, seed=seed) / RESULT,
            )
            for seed in plan.seeds
            for method in methods
        ],
        title="methods",
        num_jobs=plan.num_jobs,
    )
    return [read_run(run_folder(root, method.name, seed=seed)) for method in methods for seed in plan.seeds]


def run_searches(
    methods: Sequence[Method], *, root: Path, config: Config, dataset: Path, num_trials: int, num_jobs: int
) -> None:
    """Search the settings of every method, some methods at a time.

    Raises:
        ConfigError: the folder holds searches under other settings.
        DataError, ModelError: a search failed; finished trials are kept.
    """
    claim_root(root, config=config, digest=Dataset.load(dataset).digest)
    common: dict[str, Any] = {"root": root, "config": config, "dataset": dataset}
    pretrainings = list(dict.fromkeys(method.pretraining for method in methods if method.pretraining))
    run_jobs(
        [
            Job(name, partial(pretrain, name, seed=0, **common), pretrained_folder(root, name, seed=0) / DUAL_WEIGHTS)
            for name in pretrainings
        ],
        title="pre-training",
        num_jobs=num_jobs,
    )
    run_jobs(
        [
            Job(
                method.name,
                partial(tune, method.name, num_trials=num_trials, **common),
                search_folder(root, method.name) / f"{num_trials}-trials.json",
            )
            for method in methods
        ],
        title="searches",
        num_jobs=num_jobs,
    )


def run_jobs(jobs: Iterable[Job], *, title: str, num_jobs: int) -> None:
    """Do the jobs that are not done, some at a time; say after each how long the rest may take.

    Raises:
        StoryrecError: a job failed or its process was killed; those under way are finished, those that wait
            are not begun.
    """
    waiting = [job for job in jobs if not job.done.exists()]
    if not waiting:
        return
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    with (
        track(title, total=len(waiting)) as progress,
        process_pool(num_jobs) as pool,
    ):
        # no more than there are processes, because the pool begins whatever it was given
        queue = iter(waiting)
        running: dict[Future[None], Job] = {pool.submit(job.work): job for job in islice(queue, num_jobs)}
        for number in range(1, len(waiting) + 1):
            future = next(as_completed(running))
            job = running.pop(future)
            try:
                future.result()
            except BrokenProcessPool as error:
                raise ModelError(
                    "a process was killed before its work was done",
                    expected="memory for as many processes as --jobs says",
                    where=f"{title}: {', '.join(job.name for job in (job, *running.values()))}",
                    remedy="run the same command again, with fewer --jobs; what is finished stays",
                ) from error
            running |= {pool.submit(job.work): job for job in islice(queue, 1)}
            left = (time.monotonic() - started) / number * (len(waiting) - number)
            note = f"{job.name}; about {timedelta(seconds=round(left))} left"
            progress.advance(note=note)
            console.print(f"{title} {number}/{len(waiting)}: {note}", soft_wrap=True)


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        DataError: its result cannot be read.
    """
    path = folder / RESULT
    result = read_json(path)
    try:
        return Run(
            method=result["method"],
            group=result["group"],
            seed=result["seed"],
            metrics=result["metrics"],
            seconds=result["training"]["seconds"],
            num_parameters=result["num_parameters"],
            best_epoch=result["training"]["best_epoch"],
            settings=result["settings"],
        )
    except (KeyError, TypeError) as error:
        raise unreadable(error, where=path) from error


def claim_root(root: Path, *, config: Config, digest: str) -> None:
    """Write down what the folder's runs rest on, or check that it is the same.

    Raises:
        ConfigError: it is not.
    """
    facts = {"format": FORMAT, "dataset": digest, **config.model_dump(mode="json", include=set(SECTIONS))}
    differing = claim(root / EXPERIMENT, facts)
    if differing:
        raise _other_settings(differing, where=root / EXPERIMENT)


def _check_run(folder: Path, *, config: Config) -> None:
    """Refuse a finished run whose tuned numbers are others than today's."""
    if not (folder / RESULT).exists():
        return
    found = read_run(folder).settings
    expected = tuned_numbers(config)
    differing = differences({name: found.get(name) for name in expected}, expected)
    if differing:
        raise _other_settings(differing, where=folder / RESULT)


def _other_settings(differing: list[str], *, where: Path) -> ConfigError:
    return ConfigError(
        f"the folder holds runs of other settings: {'; '.join(differing)}",
        expected="runs of the present dataset and settings",
        where=str(where),
        remedy="name another folder with --out, go back to the settings of these runs, or remove them",
    )
