"""The gate: what passes, what does not, and that everything in doubt does not."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from storyrec.config import Config
from storyrec.gate import Judged, Thresholds, Verdict, bless, bless_model, judge_evaluation, lower_bound

CHALLENGER, CHAMPION = "c" * 16, "a" * 16
NUM_USERS = 400
THRESHOLDS = Thresholds(
    allow_first_model=True,
    min_per_user_auc=0.52,
    min_users=200,
    margin=0.005,
    confidence=0.95,
    num_resamples=1_000,
    max_onnx_difference=1e-5,
    seed=7,
)


def model(version: str, auc_U: np.ndarray, /, **changes: object) -> Judged:
    judged = Judged(
        version=version,
        per_user_auc=float(auc_U[np.isfinite(auc_U)].mean()) if np.isfinite(auc_U).any() else 0.6,
        num_not_finite=0,
        onnx_difference=3e-7,
        user_ids_U=np.arange(1, len(auc_U) + 1),
        auc_U=auc_U,
    )
    return replace(judged, **changes)  # type: ignore[arg-type]


def users(mean: float, *, seed: int = 1, spread: float = 0.1) -> np.ndarray:
    """Per-user AUC with exactly this mean."""
    noise = np.random.default_rng(seed).uniform(-spread, spread, NUM_USERS)
    return mean + noise - noise.mean()


def judged(challenger: Judged, champion: Judged | None = None, **changes: object) -> Verdict:
    return bless(challenger, champion, thresholds=replace(THRESHOLDS, **changes), day="2026-03-09")  # type: ignore[arg-type]


def failed(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if not rule.passed]


def test_a_better_challenger_is_blessed_and_the_verdict_names_what_it_judged() -> None:
    verdict = judged(model(CHALLENGER, users(0.66)), model(CHAMPION, users(0.64)))
    assert verdict.blessed
    assert failed(verdict) == []
    assert (verdict.challenger, verdict.champion, verdict.day) == (CHALLENGER, CHAMPION, "2026-03-09")
    rule = verdict.rules[-1]
    assert rule.name == "not_worse_than_champion"
    assert rule.figures["difference"] == pytest.approx(0.02)
    assert rule.figures["num_better"] == NUM_USERS
    assert rule.threshold == -0.005
    assert CHAMPION in rule.reason


def test_a_first_model_needs_the_setting_that_allows_it() -> None:
    assert judged(model(CHALLENGER, users(0.6))).blessed
    refused = judged(model(CHALLENGER, users(0.6)), allow_first_model=False)
    assert failed(refused) == ["first_model"]
    assert refused.champion is None
    assert refused.reasons == ("there is no champion yet; a first model is not allowed by the settings",)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        ({"version": "latest"}, "names"),
        ({"num_not_finite": 1}, "no_nan"),
        ({"num_not_finite": False}, "no_nan"),
        ({"auc_U": np.r_[users(0.6)[:-1], np.inf]}, "no_nan"),
        ({"auc_U": users(0.6) + 0.5}, "no_nan"),
        ({"onnx_difference": 2e-5}, "onnx_parity"),
        ({"onnx_difference": -1.0}, "onnx_parity"),
        ({"onnx_difference": float("nan")}, "onnx_parity"),
        ({"per_user_auc": 0.7}, "per_user_auc_floor"),
        ({"per_user_auc": float("nan")}, "per_user_auc_floor"),
        ({"per_user_auc": "high"}, "per_user_auc_floor"),
    ],
)
def test_each_broken_figure_is_caught_by_its_rule(broken: Mapping[str, object], rule: str) -> None:
    verdict = judged(model(CHALLENGER, users(0.6), **broken))
    assert not verdict.blessed
    assert rule in failed(verdict)


def test_a_challenger_below_the_floor_is_refused() -> None:
    assert failed(judged(model(CHALLENGER, users(0.5199)))) == ["per_user_auc_floor"]
    assert judged(model(CHALLENGER, users(0.5201))).blessed


def test_only_scorable_users_count() -> None:
    auc_U = users(0.6)
    auc_U[200:] = np.nan
    assert judged(model(CHALLENGER, auc_U)).blessed
    auc_U[199] = np.nan
    verdict = judged(model(CHALLENGER, auc_U))
    assert failed(verdict) == ["enough_users"]
    assert verdict.rules[2].figures == {"num_users": 199}


@pytest.mark.parametrize("name", [field.name for field in fields(Judged)])
@pytest.mark.parametrize("who", ["challenger", "champion"])
def test_a_missing_figure_is_never_blessed(name: str, who: str) -> None:
    models = {"challenger": model(CHALLENGER, users(0.66)), "champion": model(CHAMPION, users(0.64))}
    assert judged(models["challenger"], models["champion"]).blessed
    models[who] = replace(models[who], **{name: None})
    verdict = judged(models["challenger"], models["champion"])
    if who == "champion" and name in ("onnx_difference", "per_user_auc"):
        assert verdict.blessed  # these two are asked of the challenger alone
    else:
        assert not verdict.blessed
        assert any("could not be judged" in reason or "does not name" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("name", [field.name for field in fields(Thresholds)])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_threshold_is_never_blessed(name: str, value: float | None) -> None:
    champion = None if name == "allow_first_model" else model(CHAMPION, users(0.64))
    verdict = judged(model(CHALLENGER, users(0.66)), champion, **{name: value})
    assert not verdict.blessed
    assert len(failed(verdict)) == 1


def test_a_clearly_worse_challenger_is_refused() -> None:
    verdict = judged(model(CHALLENGER, users(0.62)), model(CHAMPION, users(0.64)))
    assert failed(verdict) == ["not_worse_than_champion"]
    assert CHAMPION in verdict.reasons[0]


def test_the_margin_decides_where_the_loss_is_certain() -> None:
    # the same loss for every user: the bound is the loss itself
    champion = model(CHAMPION, users(0.64))
    assert judged(model(CHALLENGER, users(0.64) - 0.0049), champion).blessed
    assert failed(judged(model(CHALLENGER, users(0.64) - 0.0051), champion)) == ["not_worse_than_champion"]


def test_an_equal_mean_is_refused_while_the_bound_is_too_wide() -> None:
    champion = model(CHAMPION, users(0.64, seed=1))
    challenger = model(CHALLENGER, users(0.64, seed=2))  # standard error 0.004: the bound lies near -0.007
    assert failed(judged(challenger, champion)) == ["not_worse_than_champion"]
    assert judged(challenger, champion, margin=0.01).blessed


def test_the_comparison_is_paired_by_user() -> None:
    # users differ far more than the models do: unpaired, the loss of 0.004 would drown
    champion = model(CHAMPION, users(0.64, spread=0.3))
    assert failed(judged(model(CHALLENGER, users(0.64, spread=0.3) - 0.01), champion)) == ["not_worse_than_champion"]
    assert judged(model(CHALLENGER, users(0.64, spread=0.3) - 0.004), champion).blessed


@pytest.mark.parametrize(
    "champion",
    [
        model(CHAMPION, users(0.64), user_ids_U=np.arange(2, NUM_USERS + 2)),
        model(CHAMPION, users(0.64)[:-1]),
        model(CHAMPION, np.r_[users(0.64)[:-1], np.nan]),
        model(CHAMPION, np.full(NUM_USERS, np.nan)),
    ],
)
def test_models_judged_on_different_users_cannot_be_compared(champion: Judged) -> None:
    verdict = judged(model(CHALLENGER, users(0.66)), champion)
    assert failed(verdict) == ["not_worse_than_champion"]
    assert "different" in verdict.reasons[0]


def test_a_user_twice_is_no_pairing() -> None:
    ids_U = np.r_[1, np.arange(1, NUM_USERS)]
    challenger, champion = (model(v, users(0.6), user_ids_U=ids_U) for v in (CHALLENGER, CHAMPION))
    assert failed(judged(challenger, champion)) == ["not_worse_than_champion"]


def test_the_bound_is_that_of_the_normal_approximation_and_covers() -> None:
    generator = np.random.default_rng(3)
    below = 0
    for trial in range(200):
        difference_U = generator.normal(0.0, 0.05, 300)
        bound = lower_bound(difference_U, confidence=0.9, num_resamples=400, seed=trial)
        expected = difference_U.mean() - 1.2816 * difference_U.std() / np.sqrt(300)
        assert bound == pytest.approx(expected, abs=0.0012)
        below += bound <= 0.0
    assert 165 <= below <= 194  # 180 expected, standard deviation 4.2


def test_the_bound_is_the_same_however_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    difference_U = np.random.default_rng(3).normal(0.0, 0.05, 300)
    whole = lower_bound(difference_U, confidence=0.95, num_resamples=250, seed=1)
    monkeypatch.setattr("storyrec.gate.MAX_DRAWS", 7 * 300)
    assert lower_bound(difference_U, confidence=0.95, num_resamples=250, seed=1) == whole
    assert lower_bound(difference_U, confidence=0.95, num_resamples=250, seed=2) != whole


def write_evaluation(folder: Path, *, champion: float | None, changes: Mapping[str, object] | None = None) -> Path:
    folder.mkdir()
    auc_U = users(0.66)
    metrics = {"per_user_auc": float(auc_U.mean()), "num_not_finite": 0, "num_users": NUM_USERS}
    other = None if champion is None else {"version": CHAMPION, "metrics": metrics | {"per_user_auc": champion}}
    evaluation = {
        "day": "2026-03-09",
        "challenger": {"version": CHALLENGER, "metrics": metrics, "onnx_difference": 2e-7},
        "champion": other,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation | dict(changes or {})))
    champion_auc = np.full(NUM_USERS, np.nan) if champion is None else users(champion)
    np.savez(folder / "per_user.npz", user_ids=np.arange(NUM_USERS), challenger_auc=auc_U, champion_auc=champion_auc)
    return folder


@pytest.mark.parametrize(("champion", "expected"), [(None, True), (0.64, True), (0.70, False)])
def test_the_step_writes_the_verdict_it_returns(tmp_path: Path, champion: float | None, expected: bool) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", champion=champion)
    assert bless_model(Config(), evaluation=evaluation, out=tmp_path / "verdict") is expected
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert verdict["blessed"] is expected
    assert verdict["challenger"] == CHALLENGER
    assert verdict["champion"] == (None if champion is None else CHAMPION)
    assert [rule["name"] for rule in verdict["rules"] if not rule["passed"]] == (
        [] if expected else ["not_worse_than_champion"]
    )
    assert verdict["reasons"]


@pytest.mark.parametrize(
    "changes",
    [
        {"challenger": None},
        {"challenger": {}},
        {"challenger": {"version": CHALLENGER, "metrics": None, "onnx_difference": 0.0}},
        {"challenger": {"version": CHALLENGER, "metrics": {"per_user_auc": None, "num_not_finite": 0}}},
        {"champion": {}},
        {"champion": []},
        {"day": None},
        {"day": "yesterday"},
        {"day": 20260309},
    ],
)
def test_a_strange_evaluation_is_recorded_and_not_blessed(tmp_path: Path, changes: Mapping[str, object]) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", champion=None, changes=changes)
    assert bless_model(Config(), evaluation=evaluation, out=tmp_path / "verdict") is False
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert verdict["blessed"] is False
    assert any("could not be judged" in reason or "does not name" in reason for reason in verdict["reasons"])


@pytest.mark.parametrize("damage", ["no folder", "no figures", "no users", "not json", "not npz", "pickle"])
def test_an_unreadable_evaluation_is_recorded_and_not_blessed(tmp_path: Path, damage: str) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", champion=None)
    if damage == "no folder":
        evaluation = tmp_path / "elsewhere"
    elif damage == "no figures":
        (evaluation / "evaluation.json").unlink()
    elif damage == "no users":
        (evaluation / "per_user.npz").unlink()
    elif damage == "not json":
        (evaluation / "evaluation.json").write_text("{")
    elif damage == "not npz":
        (evaluation / "per_user.npz").write_bytes(b"PK\x03\x04 cut off")
    else:
        np.savez(evaluation / "per_user.npz", user_ids=np.array([{}], dtype=object))
    assert bless_model(Config(), evaluation=evaluation, out=tmp_path / "verdict") is False
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert verdict["blessed"] is False
    assert "could not be judged" in verdict["reasons"][0]


def test_figures_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", champion=float("nan"))
    verdict = judge_evaluation(evaluation, thresholds=THRESHOLDS)
    assert not verdict.blessed
    bless_model(Config(), evaluation=evaluation, out=tmp_path / "verdict")
    assert "NaN" not in (tmp_path / "verdict" / "verdict.json").read_text()
