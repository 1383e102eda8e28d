"""Tests whose effect is known, from a simulated marketplace's truth."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from storyrec.ab.analyze import analyze
from storyrec.ab.commands import ab_app
from storyrec.ab.effects import ALPHA, METRICS, ratio
from storyrec.ab.logs import read_test
from storyrec.ab.simulate import World, draw_test, make_world, observe, write_test
from storyrec.ab.trials import run_trials
from storyrec.errors import DataError
from storyrec.logs.simulate import simulate


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("market")
    simulate(
        out_logs=root / "logs",
        out_truth=root / "truth",
        num_users=1_200,
        num_days=4,
        first_day=date(2026, 3, 1),
        seed=7,
    )
    return root / "truth"


@pytest.fixture(scope="module")
def world(truth: Path) -> World:
    return make_world(truth, sharpness=0.2, seed=7)


def test_both_arms_show_as_many_stories_of_each_request(world: World) -> None:
    assert world.is_control_I.sum() == world.is_treatment_I.sum()
    before_I = world.us_I // 86_400_000_000 < world.start_day
    assert (world.is_control_I == world.is_treatment_I)[before_I].all()
    assert (world.is_control_I != world.is_treatment_I)[~before_I].mean() > 0.1
    assert all(lift > 0.02 for lift in world.lifts.values())


def test_the_true_lift_is_what_many_draws_do(world: World) -> None:
    """All users in the one arm against all in the other."""
    sums = [np.zeros((len(world.user_ids_U), 3)) for _ in range(2)]
    for seed in range(40):
        for arm in (0, 1):
            drawn = observe(world, draw_test(world, rng=np.random.default_rng(seed), treatment_share=float(arm)))
            sums[arm] += drawn.sums_UDK.sum(axis=1)
    for metric in METRICS:
        assert ratio(sums[1], metric) / ratio(sums[0], metric) - 1 == pytest.approx(world.lifts[metric.name], abs=0.02)


def test_the_logs_hold_what_was_observed(world: World, tmp_path: Path) -> None:
    draw = draw_test(world, rng=np.random.default_rng(5))
    write_test(world, draw, tmp_path)
    read = read_test(tmp_path / "exposures.parquet", tmp_path / "outcomes.parquet", before=tmp_path / "before.parquet")
    expected = observe(world, draw)
    assert read.days == expected.days
    assert (read.is_treatment_U == expected.is_treatment_U).all()
    assert (read.entry_U == expected.entry_U).all()
    assert read.sums_UDK == pytest.approx(expected.sums_UDK)
    assert read.before_UK == pytest.approx(expected.before_UK)
    assert {counted.count for counted in read.counts} == {0}
    lifts = json.loads((tmp_path / "truth.json").read_text())["lifts"]
    for measured in analyze(
        tmp_path / "exposures.parquet", tmp_path / "outcomes.parquet", before=tmp_path / "before.parquet"
    ).metrics:
        assert measured.effect is not None
        assert measured.adjusted is not None
        assert measured.adjusted.lift.low <= lifts[measured.metric.name] <= measured.adjusted.lift.high
        assert measured.adjusted.variance < measured.effect.variance


def test_without_sharpness_there_is_no_effect(truth: Path) -> None:
    world = make_world(truth, sharpness=0, seed=7)
    assert set(world.lifts.values()) == {0.0}


def test_intervals_hold_the_true_lift_and_cuped_narrows_them(world: World) -> None:
    for trials in run_trials(world, repetitions=40, seed=1):
        assert abs(trials.mean_lift - trials.lift) < 0.04
        assert min(trials.covered, trials.adjusted_covered, trials.daily_covered) >= 0.85  # 34 of 40
        assert trials.narrowing > 0


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [0.0, 0.1])
def test_alarms_and_intervals_over_many_tests(truth: Path, sharpness: float) -> None:
    for trials in run_trials(make_world(truth, sharpness=sharpness, seed=3), repetitions=600, seed=3):
        assert 0.925 <= trials.covered <= 0.98
        assert 0.925 <= trials.adjusted_covered <= 0.98
        assert trials.daily_covered >= 0.95
        if not sharpness:
            assert 0.025 <= trials.alarms <= 0.075
            assert 0.025 <= trials.adjusted_alarms <= 0.075
            assert trials.daily_alarms <= ALPHA


def test_a_test_from_the_truth_to_the_page(truth: Path, tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    made = runner.invoke(ab_app, ["simulate", str(truth), "--out", str(tmp_path / "logs"), "--sharpness", "5"])
    assert made.exit_code == 0, made.output
    logs = [str(tmp_path / "logs" / f"{name}.parquet") for name in ("exposures", "outcomes", "before")]
    told = runner.invoke(ab_app, ["analyze", logs[0], logs[1], "--before", logs[2], "--out", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert "Deploy the treatment" in told.output
    assert (tmp_path / "out" / "report.html").is_file()
    planned = runner.invoke(ab_app, ["plan", logs[1], "--lift", "0.05"])
    assert planned.exit_code == 0, planned.output
    assert "stories viewed" in planned.output


def test_without_truth_there_is_no_test(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no true click probabilities"):
        make_world(tmp_path, sharpness=0.1, seed=7)


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    answer = CliRunner().invoke(ab_app, ["analyze", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(answer.exception, DataError)
    assert answer.exception.found == "there are no exposures"
    assert not (tmp_path / "out").exists()
