"""Placebos: worlds without what a method claims to use, in which its gain must vanish.

Two are other marketplaces (the same but for a few knobs of the simulated truth), two are the same dataset
with something shuffled; so on logs that were not simulated only the latter two are run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from storyrec.config import Config
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.experiments.comparison import paired_test, rows_of
from storyrec.experiments.fit import slug
from storyrec.experiments.methods import ADAPT, METHODS, WITHOUT_DUAL
from storyrec.experiments.prepare import Prepared, describe, prepare
from storyrec.experiments.references import score_references
from storyrec.experiments.results import Results, Run
from storyrec.experiments.run import Plan, run_methods
from storyrec.logs.simulate import MARKER, Knobs, simulate

SEED = 7
STORIES_ALONE = "V+T (storytelling)"
UNCHANGED = "as it is"
"""The world that the placebos are held against."""


@dataclass(frozen=True)
class Placebo:
    """A world without something.

    Attributes:
        name: what it is without.
        expected: what must hold in it.
        methods: names of the methods that are compared in it.
        knobs: of the simulated truth, where it is another marketplace.
        spoil: makes another dataset out of the one of the unchanged world, where it is not.
    """

    name: str
    expected: str
    methods: tuple[str, ...]
    knobs: Mapping[str, Any] = field(default_factory=dict)
    spoil: Callable[[Dataset], Dataset] | None = None


def shuffle_mounts(data: Dataset) -> Dataset:
    """Every story mounts a product drawn from all pairs: pre-training has nothing true to learn."""
    pairs_M2 = np.array(data.pairs_M2)
    pairs_M2[:, 1] = np.random.default_rng(SEED).permutation(pairs_M2[:, 1])
    return replace(data, pairs_M2=np.unique(pairs_M2, axis=0), digest=f"{data.digest}, shuffled mounts")


def permute_clicks(data: Dataset) -> Dataset:
    """Every impression has the label of another one: there is nothing to predict."""
    generator = np.random.default_rng(SEED)

    def permute(part: Instances) -> Instances:
        return replace(part, clicked_B=generator.permutation(part.clicked_B))

    return replace(
        data,
        train=permute(data.train),
        validation=permute(data.validation),
        holdout=permute(data.holdout),
        digest=f"{data.digest}, permuted clicks",
    )


PLACEBOS: tuple[Placebo, ...] = (
    Placebo(UNCHANGED, "both gains are there", (STORIES_ALONE, WITHOUT_DUAL.name, ADAPT.name)),
    Placebo(
        "no shared interests and no intent",
        "the cross-domain gain vanishes",
        (STORIES_ALONE, WITHOUT_DUAL.name, ADAPT.name),
        knobs={"shared_interests": False, "intent": 0.0},
    ),
    Placebo(
        "no gap and one vocabulary",
        "DUAL's gain shrinks",
        (STORIES_ALONE, WITHOUT_DUAL.name, ADAPT.name),
        knobs={"gap": 0.0, "shared_words": True},
    ),
    Placebo("shuffled mounts", "DUAL does not help", (WITHOUT_DUAL.name, ADAPT.name), spoil=shuffle_mounts),
    Placebo("permuted clicks", "per-user AUC is .5", (WITHOUT_DUAL.name, ADAPT.name), spoil=permute_clicks),
)


def run_placebos(config: Config, *, data: Path, root: Path, plan: Plan) -> Results:
    """Run every placebo that this data allows; finished runs are taken as they are.

    Args:
        config: settings.
        data: data root of the log contract.
        root: folder of the experiments; a folder `placebo/<name>` each is written.
        plan: which runs, and how.

    Returns:
        Runs grouped by placebo; the notes say what must hold and what was found.
    """
    base = prepare(config, data=data, root=root)
    marker = data / MARKER
    settings = json.loads(marker.read_bytes())["settings"] if marker.is_file() else None
    runs: list[Run] = []
    placebos = [placebo for placebo in PLACEBOS if settings or not placebo.knobs]
    for placebo in placebos:
        folder = root / "placebo" / slug(placebo.name)
        prepared = _prepare(placebo, config, base=base, folder=folder, settings=settings)
        runs += [
            replace(run, group=placebo.name)
            for run in run_methods(
                [METHODS[name] for name in placebo.methods],
                root=folder,
                config=prepared.config,
                dataset=prepared.dataset,
                plan=plan,
            )
        ]
    dataset = Dataset.load(base.dataset)
    results = Results(
        experiment="placebo",
        data={"name": str(data), **describe(dataset)},
        runs=tuple(runs),
        references=score_references(base.config, dataset),
        notes=(),
    )
    return replace(results, notes=tuple(conclude(results, placebo) for placebo in placebos))


def conclude(results: Results, placebo: Placebo) -> str:
    """What must hold in a placebo, and the gains that were found, with their standard errors over seeds."""
    rows = {row.method: row for row in rows_of(results) if row.group == placebo.name}
    figures = [f"{name}: per-user AUC {row.mean('per_user_auc'):.4f}" for name, row in rows.items()]
    for gain, better, worse in (
        ("cross-domain gain", WITHOUT_DUAL.name, STORIES_ALONE),
        ("DUAL's gain", ADAPT.name, WITHOUT_DUAL.name),
    ):
        if better in rows and worse in rows:
            seeds = {run.seed: run.metrics["per_user_auc"] for run in rows[worse].runs}
            differences = [run.metrics["per_user_auc"] - seeds[run.seed] for run in rows[better].runs]
            error = stats.sem(differences) if len(differences) > 1 else float("nan")
            p_value = paired_test(rows[better], rows[worse], metric="per_user_auc").p_value
            figures.append(f"{gain} {np.mean(differences):+.4f} ± {error:.4f} (p = {p_value:.2g})")
    return f"{placebo.name} (expected: {placebo.expected}): {'; '.join(figures)}"


def _prepare(
    placebo: Placebo, config: Config, *, base: Prepared, folder: Path, settings: Mapping[str, Any] | None
) -> Prepared:
    """The dataset of a placebo's world."""
    if placebo.spoil is not None:
        if not (folder / "dataset" / "dataset.json").exists():
            placebo.spoil(Dataset.load(base.dataset)).save(folder / "dataset")
        return replace(base, dataset=folder / "dataset")
    if not placebo.knobs:
        return base
    assert settings is not None
    simulate(
        out_logs=folder / "marketplace" / "logs",
        out_truth=folder / "marketplace" / "truth",
        num_users=settings["num_users"],
        num_days=settings["num_days"],
        first_day=date.fromisoformat(settings["first_day"]),
        seed=settings["seed"],
        preset=settings["preset"],
        scenario=settings["scenario"],
        knobs=Knobs(**{**settings["knobs"], **placebo.knobs}),
    )
    return prepare(config, data=folder / "marketplace" / "logs", root=folder)
