"""Table VII from the folder that other experiments leave behind."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from storyrec.config import update_config
from storyrec.errors import ConfigError, DataError, ModelError
from storyrec.experiments.matching import evaluate_matching, raw_covers, title_and_cover
from storyrec.experiments.results import Run
from storyrec.experiments.snapshots import TABLE_7, conclude
from storyrec.experiments.table7 import run_table7
from storyrec.finetune import build_aden
from storyrec.models.dual import Dual
from storyrec.models.extractors import Extractors
from storyrec.pretrain import build_extractors, raw_items
from trained import World, make_world

SEEDS = (0, 1)
FOLDERS = {
    "w/o DUAL": "runs/adapt-w-o-dual",
    "w. DUAL, fine-tuned": "runs/adapt",
    "w. DUAL, as pre-trained": "pretrained/dual",
    "DUAL without adversary": "pretrained/dual-without-adversary",
    "DUAL with InfoNCE": "pretrained/dual-with-infonce",
    "DUAL with InfoNCE without adversary": "pretrained/dual-with-infonce-without-adversary",
    "DUAL with squared distance": "pretrained/dual-with-squared-distance",
}


def write_weights(world: World, root: Path) -> dict[tuple[str, int], Extractors]:
    """Drawn weights in place of trained ones, others in every folder; the extractors of each row and seed."""
    extractors = {}
    num_words = world.data.vocabulary.size
    with torch.random.fork_rng():
        for number, (row, name) in enumerate(FOLDERS.items()):
            for seed in SEEDS:
                torch.manual_seed(100 + 10 * number + seed)
                folder = root / name / f"seed-{seed}"
                folder.mkdir(parents=True)
                training = {"seconds": 5.0 + number, "best_epoch": number}
                if name.startswith("runs/"):
                    model = build_aden(world.config, num_words=num_words)
                    model.extractors = build_extractors(world.config, num_words=num_words)
                    (folder / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
                    (folder / "result.json").write_text(json.dumps({"metrics": {}, "training": training}))
                else:
                    model = Dual(build_extractors(world.config, num_words=num_words))
                    (folder / "dual.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
                    (folder / "training.json").write_text(json.dumps(training))
                extractors[row, seed] = model.extractors.eval()
    return extractors


def test_judges_the_weights_of_every_row_and_seed(world: World, tmp_path: Path) -> None:
    extractors = write_weights(world, tmp_path)
    results = run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS)
    assert [(run.method, run.seed) for run in results.runs] == [(row.name, seed) for row in TABLE_7 for seed in SEEDS]
    stories, products = raw_items(world.data, max_words=world.config.features.max_title_words)
    settings = {"stories": stories, "products": products, "data": world.data, "seed": world.config.evaluation.seed}
    for run in results.runs[2:]:
        expected = evaluate_matching(title_and_cover(extractors[run.method, run.seed]), **settings)
        assert without_times(run.metrics) == without_times(expected)
        number = list(FOLDERS).index(run.method)
        assert (run.seconds, run.best_epoch) == (5.0 + number, number)
    # no two of these weights are alike, untrained ones included
    assert len({run.metrics["in_sample_auc_top_500"] for run in results.runs}) == len(results.runs)
    assert (results.runs[0].method, results.runs[0].seconds) == ("untrained", 0.0)
    covers = evaluate_matching(raw_covers, **settings)
    assert without_times(results.references["raw covers"]) == without_times(covers)
    assert results.data["digest"] == world.data.digest
    assert results.notes == tuple(conclude(results.runs))


def without_times(metrics: object) -> dict[str, float]:
    assert isinstance(metrics, dict)
    return {name: value for name, value in metrics.items() if name != "approximate_speedup_at_5"}


def test_takes_finished_rows_as_they_are(world: World, tmp_path: Path) -> None:
    write_weights(world, tmp_path)
    first = run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])
    kept = tmp_path / "matching/w-dual-as-pre-trained/seed-0.json"
    content = json.loads(kept.read_bytes())
    content["metrics"]["unseen_hit_at_5"] = 0.123
    kept.write_text(json.dumps(content))
    (tmp_path / "matching/dual-with-infonce/seed-0.json").unlink()
    second = run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS)
    found = {(run.method, run.seed): run.metrics for run in second.runs}
    assert found["w. DUAL, as pre-trained", 0]["unseen_hit_at_5"] == 0.123
    for run in first.runs:
        if run.method == "DUAL with InfoNCE":
            assert without_times(run.metrics) == without_times(found[run.method, 0])
        elif run.method != "w. DUAL, as pre-trained":
            assert run.metrics == found[run.method, 0]  # to the measured time


@pytest.mark.parametrize(
    ("folder", "command"),
    [("runs/adapt", "table6"), ("pretrained/dual", "table6"), ("pretrained/dual-with-infonce", "beyond")],
)
def test_names_the_command_that_makes_a_missing_snapshot(
    world: World, tmp_path: Path, folder: str, command: str
) -> None:
    write_weights(world, tmp_path)
    next((tmp_path / folder / "seed-1").glob("*.safetensors")).unlink()
    with pytest.raises(
        ModelError, match=f"seed 1, are missing(.|\n)*{folder}(.|\n)*storyrec experiment {command} DATA"
    ):
        run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS)
    assert not (tmp_path / "matching").exists()


def test_refuses_earlier_results_of_other_weights_settings_or_data(world: World, tmp_path: Path) -> None:
    write_weights(world, tmp_path)
    run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])
    before = {path: path.read_bytes() for path in tmp_path.glob("matching/**/*.json")}
    other = update_config(world.config, {"evaluation": {"seed": 99}})
    with pytest.raises(ConfigError, match="query_seed was 7, now 99"):
        run_table7(tmp_path, config=other, data=world.data, seeds=SEEDS[:1])
    weights = tmp_path / "pretrained/dual/seed-0/dual.safetensors"
    weights.write_bytes((tmp_path / "pretrained/dual/seed-1/dual.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="weights was"):
        run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])
    assert {path: path.read_bytes() for path in tmp_path.glob("matching/**/*.json")} == before


def test_says_which_file_cannot_be_read(world: World, tmp_path: Path) -> None:
    write_weights(world, tmp_path)
    run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])
    (tmp_path / "matching/untrained/seed-0.json").write_text("[]")
    with pytest.raises(DataError, match=r"no JSON object(.|\n)*untrained/seed-0.json"):
        run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])


def test_leaves_raw_covers_out_where_there_are_none(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", covers=False)
    write_weights(world, tmp_path)
    results = run_table7(tmp_path, config=world.config, data=world.data, seeds=SEEDS[:1])
    assert not results.references
    assert all(run.metrics["in_sample_num_queries"] > 0 for run in results.runs)


def runs_of(values: dict[str, list[float]]) -> list[Run]:
    return [
        Run(
            name,
            "",
            seed,
            {"unseen_hit_at_5": value},
            seconds=0,
            num_parameters=0,
            best_epoch=0,
            settings={},
        )
        for name, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


def test_concludes_in_words() -> None:
    best, adversary, tuned = [0.41, 0.42, 0.40, 0.43], [0.31, 0.30, 0.315, 0.325], [0.18, 0.35, 0.33, 0.36]
    lines = conclude(
        runs_of({"DUAL without adversary": best, "w. DUAL, as pre-trained": adversary, "w. DUAL, fine-tuned": tuned})
    )
    assert "'DUAL without adversary' finds" in lines[0]
    assert "0.4150. Second is 'w. DUAL, as pre-trained' with 0.3125; more than chance (p = " in lines[0]
    # t = mean / (deviation / sqrt(4)) of the differences -0.13, 0.05, 0.015, 0.035: far from significant
    assert (
        "Fine-tuning on clicks lowers that share: 0.3125 without, 0.3050 with; chance cannot be ruled out" in lines[1]
    )
    differences = np.subtract(tuned, adversary)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(4))
    # two-sided p of Student's t with 3 degrees of freedom, in closed form
    x = abs(t) / math.sqrt(3)
    p = 1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x))
    assert f"(p = {p:.2g}, t-test paired over 4 seeds)" in lines[1]
    assert "The adversary of DUAL lowers that share: 0.4150 without, 0.3125 with; more than chance" in lines[2]


def test_one_seed_or_equal_differences_are_not_tested() -> None:
    one = conclude(runs_of({"untrained": [0.1], "w/o DUAL": [0.2]}))
    assert one == [one[0]]
    assert "one seed, so no test" in one[0]
    equal = conclude(runs_of({"untrained": [0.25, 0.5], "w/o DUAL": [0.25, 0.5]}))
    assert "the same difference with each of 2 seeds" in equal[0]


def test_without_unseen_products_nothing_is_concluded() -> None:
    nothing = [math.nan, math.nan]
    (line,) = conclude(runs_of({"untrained": nothing, "w/o DUAL": nothing}))
    assert "no snapshot can be called best" in line
