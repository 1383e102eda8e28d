"""The gate: what passes, what does not, and that everything in doubt does not."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluated import CHALLENGER, CHAMPION, NUM_USERS, REHEARSAL, Evaluated, write_evaluation
from storyrec.config import Config, Gate, Locations
from storyrec.gate.bless import bless_model, calibration_errors, judge_evaluation
from storyrec.gate.thresholds import Margin, Thresholds
from storyrec.gate.verdict import Verdict
from storyrec.slices import SLICES
from storyrec.storage import FolderStorage

THRESHOLDS = Thresholds(
    **{
        name: Margin(**value) if isinstance(value, dict) else value
        for name, value in Gate(num_resamples=500, min_slice_users=100).model_dump().items()
    }
)
AGAINST = ("per_user_auc", "ndcg", "log_loss", "calibration")


@pytest.fixture
def evaluated() -> Evaluated:
    return Evaluated.of()


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Verdict]:
    def judged(evaluated: Evaluated, **changes: object) -> Verdict:
        thresholds = replace(THRESHOLDS, **changes)  # type: ignore[arg-type]
        work = FolderStorage(tmp_path / "work")
        return judge_evaluation(evaluated.write(tmp_path / "evaluation"), thresholds=thresholds, work=work)

    return judged


def failed(verdict: Verdict) -> list[str]:
    assert verdict.blessed == all(rule.passed for rule in verdict.rules)
    return [rule.name for rule in verdict.rules if not rule.passed]


def rule(verdict: Verdict, name: str) -> Mapping[str, Any]:
    (found,) = (rule.figures for rule in verdict.rules if rule.name == name)
    return found


def test_a_better_challenger_is_blessed_and_the_verdict_names_what_it_judged(
    evaluated: Evaluated, judge: Callable[..., Verdict]
) -> None:
    evaluated.champion = evaluated.spoiled(0.2)
    verdict = judge(evaluated)
    assert failed(verdict) == []
    assert (verdict.challenger, verdict.champion, verdict.day) == (CHALLENGER, CHAMPION, "2026-03-09")
    names = [rule.name for rule in verdict.rules]
    assert names[:2] == ["names", "figures"]
    assert [name for name in names if name.endswith("_against_champion")] == [f"{a}_against_champion" for a in AGAINST]
    assert [name for name in names if name.startswith("slice: ")] == [f"slice: {name}" for name in SLICES]
    for name in AGAINST[:3]:
        figures = rule(verdict, f"{name}_against_champion")
        assert 0 < figures["lower"] < figures["estimate"] < figures["upper"]
    content = evaluated.content()
    expected = content["challenger"]["metrics"]["per_user_auc"] - content["champion"]["metrics"]["per_user_auc"]
    assert rule(verdict, "per_user_auc_against_champion")["estimate"] == pytest.approx(expected)
    assert rule(verdict, "log_loss_against_champion")["estimate"] == pytest.approx(
        content["champion"]["metrics"]["log_loss"] - content["challenger"]["metrics"]["log_loss"]
    )
    assert rule(verdict, "ndcg_against_champion")["estimate"] == pytest.approx(
        content["challenger"]["metrics"]["ndcg_at_5"] - content["champion"]["metrics"]["ndcg_at_5"]
    )


def test_a_model_against_itself_passes_and_differs_in_nothing(
    evaluated: Evaluated, judge: Callable[..., Verdict]
) -> None:
    evaluated.challenger = evaluated.spoiled(0.15)
    evaluated.champion = evaluated.challenger.copy()
    verdict = judge(evaluated)
    assert failed(verdict) == []
    for name in (*(f"{name}_against_champion" for name in AGAINST), f"slice: {SLICES[0]}"):
        figures = rule(verdict, name)
        assert figures["estimate"] == figures["lower"] == figures["upper"] == figures["detectable"] == 0
    assert rule(verdict, "score_drift")["population_stability_index"] == 0


def test_shuffled_scores_are_refused(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    evaluated.challenger = evaluated.spoiled(1.0)
    names = failed(judge(evaluated))
    floors = {"per_user_auc_floor", "log_loss_ceiling"}
    assert floors | {f"{name}_against_champion" for name in AGAINST[:3]} <= set(names)
    evaluated.champion = None
    assert floors <= set(failed(judge(evaluated)))


def test_a_first_model_needs_the_setting_that_allows_it(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    evaluated.champion = None
    assert judge(evaluated).blessed
    refused = judge(evaluated, allow_first_model=False)
    assert failed(refused) == ["first_model"]
    assert refused.champion is None
    assert refused.reasons == ("there is no champion yet; a first model is not allowed by the settings",)


def test_a_slightly_worse_challenger_passes_within_the_margin_alone(
    evaluated: Evaluated, judge: Callable[..., Verdict]
) -> None:
    evaluated.challenger = evaluated.spoiled(0.1)
    loose = Margin(margin=0.2, confidence=0.95)
    others = {"ndcg": loose, "log_loss": loose, "calibration": loose, "slices": loose}
    verdict = judge(evaluated, per_user_auc=loose, **others)
    assert failed(verdict) == []
    lower = rule(verdict, "per_user_auc_against_champion")["lower"]
    assert lower < 0
    for name in AGAINST:
        lower = rule(verdict, f"{name}_against_champion")["lower"]
        for margin, expected in ((-lower + 1e-6, []), (-lower - 1e-6, [f"{name}_against_champion"])):
            changed = {"per_user_auc": loose, **others, name: Margin(margin=margin, confidence=0.95)}
            assert failed(judge(evaluated, **changed)) == expected


def test_more_confidence_is_a_lower_bound(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    evaluated.challenger, evaluated.champion = evaluated.spoiled(0.3, seed=1), evaluated.spoiled(0.3, seed=2)
    bounds = [
        rule(judge(evaluated, per_user_auc=Margin(margin=1.0, confidence=confidence)), "per_user_auc_against_champion")
        for confidence in (0.8, 0.95, 0.99)
    ]
    assert bounds[0]["lower"] > bounds[1]["lower"] > bounds[2]["lower"]
    assert bounds[0]["detectable"] < bounds[1]["detectable"] < bounds[2]["detectable"]


def test_a_loss_for_some_is_seen_in_their_slice_alone(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    few = evaluated.user_ids % 4 == 0  # a quarter of the users
    evaluated.slices[:] = [few if place == 3 else ~few for place in range(len(SLICES))]
    evaluated.challenger = evaluated.spoiled(0.5, where=few)
    loose = Margin(margin=0.2, confidence=0.95)
    verdict = judge(evaluated, per_user_auc=loose, ndcg=loose, log_loss=loose, calibration=loose)
    assert failed(verdict) == [f"slice: {SLICES[3]}"]
    assert SLICES[3] in verdict.reasons[0]
    assert rule(verdict, f"slice: {SLICES[0]}")["estimate"] == 0
    num_users = int(rule(verdict, f"slice: {SLICES[3]}")["num_users"])
    enough, small = (
        judge(evaluated, per_user_auc=loose, ndcg=loose, log_loss=loose, calibration=loose, min_slice_users=needed)
        for needed in (num_users, num_users + 1)
    )
    assert (failed(enough), failed(small)) == ([f"slice: {SLICES[3]}"], [])
    assert rule(small, f"slice: {SLICES[3]}")["judged"] is False
    assert rule(small, f"slice: {SLICES[3]}")["estimate"] < -0.03
    assert "too few to be judged" in " ".join(small.reasons)


def test_a_slice_that_the_day_cannot_tell_stops_only_who_surely_lost_there(
    evaluated: Evaluated, judge: Callable[..., Verdict]
) -> None:
    evaluated.slices[:] = [np.ones(len(evaluated.user_ids), bool)] * len(SLICES)
    loose = Margin(margin=0.4, confidence=0.95)
    tight = {"per_user_auc": loose, "ndcg": loose, "log_loss": loose, "calibration": loose}
    evaluated.challenger = evaluated.spoiled(0.03)
    blurred = judge(evaluated, slices=Margin(margin=0.0045, confidence=0.95), **tight)
    figures = rule(blurred, f"slice: {SLICES[0]}")
    assert failed(blurred) == []
    assert figures["lower"] < -0.0045 < figures["upper"]
    assert figures["judged"] is False
    assert "too blurred to be judged" in " ".join(blurred.reasons)
    evaluated.challenger = evaluated.spoiled(0.5)
    lost = judge(evaluated, slices=Margin(margin=0.0045, confidence=0.95), **tight)
    assert {f"slice: {name}" for name in SLICES} <= set(failed(lost))
    assert "surely less than -0.0045" in " ".join(lost.reasons)


def test_a_slice_without_users_is_reported_and_not_judged(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    verdict = judge(evaluated)
    assert failed(verdict) == []
    assert rule(verdict, f"slice: {SLICES[1]}")["num_users"] == 0
    assert rule(verdict, f"slice: {SLICES[0]}")["judged"] is True


def test_scores_that_rank_alike_but_drift_are_refused(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    evaluated.challenger = evaluated.truth**0.5
    names = failed(judge(evaluated))
    assert "per_user_auc_against_champion" not in names
    assert {"log_loss_against_champion", "calibration_error", "calibration_against_champion", "score_drift"} <= set(
        names
    )


def test_calibration_is_weighed_against_the_earlier_runs(
    evaluated: Evaluated, judge: Callable[..., Verdict], tmp_path: Path
) -> None:
    error = rule(judge(evaluated), "calibration_error")["error"]
    work = FolderStorage(tmp_path / "work")
    for day, earlier in (("05", 0.9), ("06", error), ("07", 0.0), ("08", 0.0), ("09", 0.7), ("10", 0.7)):
        rules = [{"name": "calibration_error", "figures": {"error": earlier}}]
        work.write(f"runs/dt=2026-03-{day}/verdict.json", json.dumps({"rules": rules}).encode())
    work.write("runs/dt=2026-03-04/verdict.json", b"{")
    work.write("runs/dt=2026-03-03/verdict.json", b'{"rules": []}')
    assert calibration_errors(work, before="2026-03-09") == (0.9, error, 0.0, 0.0)
    assert failed(judge(evaluated, max_calibration_rise=0.5 * error + 1e-9)) == []  # the median is half of it
    verdict = judge(evaluated, max_calibration_rise=0.5 * error - 1e-9)
    assert failed(verdict) == ["calibration_error"]
    assert "4 earlier runs" in verdict.reasons[0]
    work.delete("runs/dt=2026-03-08/verdict.json")
    work.delete("runs/dt=2026-03-07/verdict.json")
    assert failed(judge(evaluated, max_calibration_rise=0.0)) == []  # two runs are no trend


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("rehearsal.error", "the server did not start", ["rehearsal", "latency"]),
        ("rehearsal.version", CHAMPION, ["rehearsal"]),
        ("rehearsal.num_requests", 0, ["rehearsal"]),
        ("rehearsal.largest_difference", 2e-5, ["rehearsal"]),
        ("rehearsal.latency_ms_p95", 251.0, ["latency"]),
        ("rehearsal.latency_ms_median", 10.0, ["latency"]),  # above the 95 % quantile: a contradiction
        ("challenger.onnx_difference", 2e-5, ["onnx_parity"]),
        ("challenger.onnx_difference", -1.0, ["onnx_parity"]),
        ("challenger.num_bytes", 1_600_000, ["bundle_size"]),
        ("challenger.num_bytes", 0, ["bundle_size"]),
        ("challenger.metrics.per_user_auc", 0.99, ["figures"]),
        ("challenger.metrics.num_not_finite", 1, ["figures"]),
        ("champion.metrics.log_loss", 0.1, ["figures"]),
    ],
)
def test_each_bad_figure_is_caught_by_its_rule(
    evaluated: Evaluated, tmp_path: Path, path: str, value: object, expected: list[str]
) -> None:
    verdict = judge_changed(evaluated, tmp_path, path, value)
    assert failed(verdict) == expected


def test_a_bundle_too_large_for_the_servers_is_refused(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    assert failed(judge(evaluated, max_bundle_megabytes=1.0)) == []
    assert failed(judge(evaluated, max_bundle_megabytes=0.99)) == ["bundle_size"]


def test_floors_decide_at_their_value(evaluated: Evaluated, judge: Callable[..., Verdict]) -> None:
    metrics = evaluated.content()["challenger"]["metrics"]
    auc, num_users = metrics["per_user_auc"], metrics["num_users"]
    assert failed(judge(evaluated, min_per_user_auc=auc - 1e-6, min_users=num_users)) == []
    assert failed(judge(evaluated, min_per_user_auc=auc + 1e-6)) == ["per_user_auc_floor"]
    assert failed(judge(evaluated, min_users=num_users + 1)) == ["enough_users"]
    ndcg = metrics["ndcg_at_5"]
    verdict = judge(evaluated, min_ndcg=ndcg - 1e-6)
    assert failed(verdict) == []
    assert rule(verdict, "ndcg_floor")["low"] < ndcg < rule(verdict, "ndcg_floor")["high"]
    assert failed(judge(evaluated, min_ndcg=ndcg + 1e-6)) == ["ndcg_floor"]
    rate = evaluated.clicked.mean()
    ratio = metrics["log_loss"] / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert failed(judge(evaluated, max_log_loss_ratio=ratio + 1e-6)) == []
    assert failed(judge(evaluated, max_log_loss_ratio=ratio - 1e-6)) == ["log_loss_ceiling"]


def changed(content: Any, path: str, value: object) -> Any:
    """The content with one value changed, or taken away where the value is KeyError."""
    content = copy.deepcopy(content)
    *way, last = path.split(".")
    place = content
    for name in way:
        place = place[name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return content


def judge_changed(evaluated: Evaluated, folder: Path, path: str, value: object) -> Verdict:
    content = changed(evaluated.content(), path, value)
    write_evaluation(folder / "evaluation", content=content, arrays=evaluated.arrays())
    return judge_evaluation(folder / "evaluation", thresholds=THRESHOLDS, work=FolderStorage(folder / "work"))


NEEDED = [
    *("day", "num_candidates", "top_k", "seed", "challenger", "champion", "rehearsal"),
    *(f"challenger.{name}" for name in ("version", "num_bytes", "metrics", "onnx_difference")),
    *(f"champion.{name}" for name in ("version", "num_bytes", "metrics")),
    *(f"{model}.metrics.{name}" for model in ("challenger", "champion") for name in ("per_user_auc", "log_loss")),
    *(f"rehearsal.{name}" for name in REHEARSAL if name not in ("error", "version")),
]


@pytest.mark.parametrize("value", [KeyError, None, float("nan"), "high", True, []])
def test_a_missing_or_strange_figure_is_never_blessed(tmp_path: Path, value: object) -> None:
    evaluated = Evaluated.of(num_users=220)
    assert judge_changed(evaluated, tmp_path, "day", "2026-03-09").blessed
    for path in NEEDED:
        verdict = judge_changed(evaluated, tmp_path, path, value)
        assert not verdict.blessed, path
        assert "could not be judged" in " ".join(verdict.reasons), path


@pytest.mark.parametrize("name", [field.name for field in fields(Thresholds)])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_threshold_is_never_blessed(judge: Callable[..., Verdict], name: str, value: float | None) -> None:
    evaluated = Evaluated.of(num_users=220)
    if name == "allow_first_model":
        evaluated.champion = None
    assert judge(evaluated).blessed
    threshold = getattr(THRESHOLDS, name)
    parts: list[object] = [value]
    if isinstance(threshold, Margin):
        parts = [replace(threshold, margin=value), replace(threshold, confidence=value)]
    for part in parts:
        assert not judge(evaluated, **{name: part}).blessed


@pytest.mark.parametrize("name", ["user_ids", "clicked", "challenger", "champion", "slices"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "another type", "not finite"])
def test_strange_scores_are_never_blessed(evaluated: Evaluated, tmp_path: Path, name: str, damage: str) -> None:
    arrays = evaluated.arrays()
    if damage == "missing":
        del arrays[name]
    elif damage == "shorter":
        arrays[name] = arrays[name][..., :-1]
    elif damage == "another type":
        arrays[name] = arrays[name].astype("U8")
    else:
        arrays[name] = np.where(np.arange(arrays[name].shape[-1]) == 3, np.nan, arrays[name])
    write_evaluation(tmp_path / "evaluation", content=evaluated.content(), arrays=arrays)
    verdict = judge_evaluation(tmp_path / "evaluation", thresholds=THRESHOLDS, work=FolderStorage(tmp_path / "work"))
    assert failed(verdict) == ["evaluation"]


def test_scores_of_a_champion_that_is_not_named_are_a_contradiction(evaluated: Evaluated, tmp_path: Path) -> None:
    verdict = judge_changed(evaluated, tmp_path, "champion", None)
    assert failed(verdict) == ["evaluation"]


@pytest.mark.parametrize("expected", [True, False])
def test_the_step_writes_the_verdict_it_returns_and_a_card(
    evaluated: Evaluated, tmp_path: Path, expected: bool
) -> None:
    if not expected:
        evaluated.challenger = evaluated.spoiled(0.5)
    config = Config(locations=Locations(work=str(tmp_path / "work")))
    evaluation = evaluated.write(tmp_path / "evaluation")
    assert bless_model(config, evaluation=evaluation, out=tmp_path / "verdict") is expected
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert verdict["blessed"] is expected
    assert (verdict["challenger"], verdict["champion"]) == (CHALLENGER, CHAMPION)
    assert verdict["reasons"] == [rule["reason"] for rule in verdict["rules"] if rule["passed"] is expected]
    assert "NaN" not in (tmp_path / "verdict" / "verdict.json").read_text()
    card = (tmp_path / "verdict" / "model_card.md").read_text()
    assert f"bundle {CHALLENGER} of 2026-03-09" in card
    assert ("**Blessed**" in card) is expected
    figures = next(rule for rule in verdict["rules"] if rule["name"] == "per_user_auc_against_champion")["figures"]
    auc = evaluated.content()["challenger"]["metrics"]["per_user_auc"]
    assert f"| per-user AUC | {auc:.4f} | {figures['champion']:.4f} | {figures['estimate']:+.4f} |" in card
    floor = next(rule for rule in verdict["rules"] if rule["name"] == "ndcg_floor")["figures"]
    assert f"NDCG@5 {floor['low']:.4f} to {floor['high']:.4f}" in card


@pytest.mark.parametrize("damage", ["no folder", "no figures", "no scores", "not json", "a list", "not npz", "pickle"])
def test_an_unreadable_evaluation_is_recorded_and_not_blessed(
    evaluated: Evaluated, tmp_path: Path, damage: str
) -> None:
    evaluation = evaluated.write(tmp_path / "evaluation")
    if damage == "no folder":
        evaluation = tmp_path / "elsewhere"
    elif damage == "no figures":
        (evaluation / "evaluation.json").unlink()
    elif damage == "no scores":
        (evaluation / "scores.npz").unlink()
    elif damage in ("not json", "a list"):
        (evaluation / "evaluation.json").write_text("{" if damage == "not json" else "[]")
    elif damage == "not npz":
        (evaluation / "scores.npz").write_bytes(b"PK\x03\x04 cut off")
    else:
        np.savez(evaluation / "scores.npz", user_ids=np.array([{}], dtype=object))
    config = Config(locations=Locations(work=str(tmp_path / "work")))
    assert bless_model(config, evaluation=evaluation, out=tmp_path / "verdict") is False
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert verdict["blessed"] is False
    assert "could not be judged" in verdict["reasons"][0]
    assert "could not be judged" in (tmp_path / "verdict" / "model_card.md").read_text()


def test_the_power_that_is_reported_is_the_power_there_is(judge: Callable[..., Verdict]) -> None:
    """A true loss as large as `detectable` is found at the confidence in four of five days."""
    found, detectable = [], []
    for seed in range(40):
        evaluated = Evaluated.of(seed=seed, num_users=NUM_USERS // 2)
        evaluated.challenger = evaluated.spoiled(0.03, seed=seed + 100)
        figures = rule(judge(evaluated), "per_user_auc_against_champion")
        found.append(figures["upper"] < 0)
        detectable.append(figures["detectable"] / -figures["estimate"])
    # the loss is about as large as detectable, so most days find it and some do not
    assert 0.5 < np.mean(detectable) < 2.0
    assert 0.65 < np.mean(found) < 1.0
