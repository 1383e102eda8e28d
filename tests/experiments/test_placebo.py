"""Worlds without something: what is spoilt, what stays, and what is concluded from the gains."""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_world import contents, simulate_marketplace, small_world

from storyrec.arrays import array_fields
from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.experiments.methods import METHODS
from storyrec.experiments.placebo import (
    PLACEBOS,
    STORIES_ALONE,
    UNCHANGED,
    conclude,
    permute_clicks,
    run_placebos,
    shuffle_mounts,
)
from storyrec.experiments.prepare import prepare
from storyrec.experiments.results import Results, Run
from storyrec.experiments.run import Plan
from storyrec.logs.simulate import MARKER
from trained import World

PARTS = ("train", "validation", "holdout")
KEPT = ("stories", "products", "story_clicks", "product_clicks")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small"))


def same_arrays(ours: object, theirs: object) -> bool:
    pairs = zip(array_fields(ours), array_fields(theirs), strict=True)
    return all(name == other and np.array_equal(one, two) for (name, one), (other, two) in pairs)


def test_shuffled_mounts_keep_stories_and_products_but_hardly_a_pair(small: World) -> None:
    data = small.data
    shuffled = shuffle_mounts(data)
    for column in (0, 1):
        assert sorted(shuffled.pairs_M2[:, column]) == sorted(data.pairs_M2[:, column])
    kept = set(map(tuple, data.pairs_M2.tolist())) & set(map(tuple, shuffled.pairs_M2.tolist()))
    assert len(kept) <= 5 < len(data.pairs_M2) / 10
    assert sorted(map(tuple, shuffled.pairs_M2.tolist())) == list(map(tuple, shuffled.pairs_M2.tolist()))
    assert np.array_equal(shuffled.holdout_pairs_M2, data.holdout_pairs_M2)
    for name in (*KEPT, *PARTS):
        assert same_arrays(getattr(shuffled, name), getattr(data, name))
    assert shuffled.digest != data.digest
    assert np.array_equal(shuffle_mounts(data).pairs_M2, shuffled.pairs_M2)


def test_permuted_clicks_keep_the_click_rate_of_each_part_and_all_else(small: World) -> None:
    data = small.data
    permuted = permute_clicks(data)
    for name in PARTS:
        ours, theirs = getattr(permuted, name), getattr(data, name)
        assert ours.clicked_B.sum() == theirs.clicked_B.sum()
        assert abs(np.corrcoef(ours.clicked_B, theirs.clicked_B)[0, 1]) < 0.2
        for (field, one), (_, two) in zip(array_fields(ours), array_fields(theirs), strict=True):
            assert np.array_equal(one, two) == (field != "clicked_B")
    for name in KEPT:
        assert same_arrays(getattr(permuted, name), getattr(data, name))
    assert np.array_equal(permuted.pairs_M2, data.pairs_M2)
    assert permuted.digest not in {data.digest, shuffle_mounts(data).digest}


def test_a_spoilt_dataset_is_saved_as_it_is(small: World, tmp_path: Path) -> None:
    spoilt = permute_clicks(small.data)
    spoilt.save(tmp_path / "dataset")
    loaded = Dataset.load(tmp_path / "dataset")
    assert loaded.digest == spoilt.digest
    assert np.array_equal(loaded.holdout.clicked_B, spoilt.holdout.clicked_B)


def results(group: str, aucs: dict[str, tuple[float, ...]]) -> Results:
    runs = [
        Run(method, group, seed, {"per_user_auc": auc}, 1.0, 10, 1, {})
        for method, values in aucs.items()
        for seed, auc in enumerate(values)
    ]
    return Results("placebo", {}, tuple(runs), {}, ())


def test_gains_are_differences_of_the_same_seed_with_their_standard_error() -> None:
    unchanged = PLACEBOS[0]
    found = results(
        UNCHANGED,
        {
            STORIES_ALONE: (0.60, 0.62, 0.64),
            "ADAPT w/o DUAL": (0.65, 0.66, 0.69),  # + .05, .04, .05
            "ADAPT": (0.64, 0.66, 0.70),  # - .01, 0, + .01
        },
    )
    # another world's runs are no matter
    others = results("permuted clicks", {"ADAPT w/o DUAL": (0.5, 0.5, 0.5), "ADAPT": (0.1, 0.2, 0.3)})
    said = conclude(Results("placebo", {}, (*others.runs, *found.runs), {}, ()), unchanged)
    assert said.startswith("as it is (expected: both gains are there): V+T (storytelling): per-user AUC 0.6200; ")
    assert "ADAPT w/o DUAL: per-user AUC 0.6667; ADAPT: per-user AUC 0.6667; " in said
    # s = sqrt(((.0033^2) 2 + .0067^2) / 2) = .00577, / sqrt 3 = .0033; t = 14, two degrees of freedom
    assert "cross-domain gain +0.0467 ± 0.0033 (p = 0.0051); " in said
    assert said.endswith("DUAL's gain +0.0000 ± 0.0058 (p = 1)")


def test_seeds_are_matched_by_number_and_not_by_place() -> None:
    shuffled = next(placebo for placebo in PLACEBOS if placebo.name == "shuffled mounts")
    found = results(shuffled.name, {"ADAPT w/o DUAL": (0.5, 0.7), "ADAPT": (0.6, 0.82)})
    said = conclude(Results("placebo", {}, (*found.runs[:1:-1], *found.runs[:2]), {}, ()), shuffled)
    assert "DUAL's gain +0.1100 ± 0.0100" in said
    assert "cross-domain gain" not in said


def test_one_seed_has_no_error() -> None:
    found = results(UNCHANGED, {STORIES_ALONE: (0.6,), "ADAPT w/o DUAL": (0.65,), "ADAPT": (0.7,)})
    assert "DUAL's gain +0.0500 ± nan (p = nan)" in conclude(found, PLACEBOS[0])


def test_every_placebo_names_methods_and_a_way_to_make_it() -> None:
    names = [placebo.name for placebo in PLACEBOS]
    assert len(set(names)) == len(names) == 5
    for placebo in PLACEBOS:
        assert set(placebo.methods) <= METHODS.keys()
        assert bool(placebo.knobs) + bool(placebo.spoil) == (placebo.name != UNCHANGED)


TINY = {
    "model": {"width": 16, "head_widths": [16, 8]},
    "dual": {"max_epochs": 1, "max_steps": 5},
    "aden": {"max_epochs": 1, "batch_size": 128},
}


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_on_a_simulated_marketplace_every_placebo_is_run(tmp_path: Path) -> None:
    logs = simulate_marketplace(tmp_path, num_users=60)
    root = tmp_path / "root"

    def run() -> Results:
        return run_placebos(Config(), data=logs, root=root, plan=Plan(seeds=[0], num_jobs=1, overrides=TINY))

    found = run()
    assert [(one.group, one.method) for one in found.runs] == [
        (placebo.name, name) for placebo in PLACEBOS for name in placebo.methods
    ]
    assert [note.split(" (expected")[0] for note in found.notes] == [placebo.name for placebo in PLACEBOS]
    base = Dataset.load(root / "dataset")
    assert found.data["digest"] == base.digest
    # the worlds are what they say: each with its own knobs, the rest as in the marketplace
    settings = json.loads((logs / MARKER).read_bytes())["settings"]
    for placebo in PLACEBOS:
        folder = root / "placebo" / placebo.name.replace(" ", "-")
        digest = json.loads((folder / "experiment.json").read_bytes())["dataset"]
        assert (digest == base.digest) == (placebo.name == UNCHANGED)
        if placebo.knobs:
            other = json.loads((folder / "marketplace/logs" / MARKER).read_bytes())["settings"]
            assert other == settings | {"knobs": settings["knobs"] | dict(placebo.knobs)}
    before = contents(root)
    again = run()
    assert (again.runs, again.notes) == (found.runs, found.notes)
    assert contents(root) == before


@pytest.mark.slow
def test_on_other_logs_only_what_needs_no_simulation_is_run(tmp_path: Path) -> None:
    logs = simulate_marketplace(tmp_path, num_users=60)
    (logs / MARKER).unlink()
    config = update_config(Config(), TINY)
    prepare(config, data=logs, root=tmp_path / "root")
    found = run_placebos(config, data=logs, root=tmp_path / "root", plan=Plan(seeds=[0], num_jobs=1, overrides=TINY))
    assert list(dict.fromkeys(run.group for run in found.runs)) == [UNCHANGED, "shuffled mounts", "permuted clicks"]
    assert len(found.notes) == 3
    assert not (tmp_path / "root/placebo/no-gap-and-one-vocabulary").exists()
