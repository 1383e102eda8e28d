"""The gate over whole trainings on simulated marketplaces: true clicks pass, clicks handed out at random do not."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from storyrec.config import Config, update_config
from storyrec.data.build import build_dataset
from storyrec.evaluate import evaluate_model
from storyrec.finetune import finetune_aden
from storyrec.gate.bless import bless_model
from storyrec.logs.simulate import simulate
from storyrec.logs.validate import catch_up
from storyrec.pack import pack_bundle
from storyrec.pretrain import pretrain_dual
from storyrec.storage import FolderStorage

FIRST_DAY, NUM_DAYS = date(2026, 3, 1), 4
LAST = FIRST_DAY + timedelta(days=NUM_DAYS - 1)

pytestmark = pytest.mark.slow


def train(folder: Path, *, scenario: str, champion: Path | None) -> dict[str, Any]:
    """Simulate, validate and train in a folder; returns the verdict on the bundle that lies there then."""
    simulate(
        out_logs=folder / "logs",
        out_truth=folder / "truth",
        num_users=2_000,
        num_days=NUM_DAYS,
        first_day=FIRST_DAY,
        seed=7,
        scenario=scenario,
    )
    places = {name: str(folder / name) for name in ("logs", "truth", "work", "registry")}
    epochs = {"max_epochs": 3}
    config = update_config(
        Config(),
        {
            "locations": places,
            "windows": {"training_days": 1, "holdout_days": 1},
            "dual": epochs,
            "aden": epochs,
        },
    )
    catch_up(config, day=LAST + timedelta(days=1))
    dataset, dual, aden, bundle = (folder / name for name in ("dataset", "dual", "aden", "bundle"))
    checkpoints = FolderStorage(folder / "checkpoints")
    build_dataset(config, day=LAST, out=dataset)
    pretrain_dual(config, dataset=dataset, champion=None, checkpoints=checkpoints, out=dual)
    finetune_aden(config, dataset=dataset, dual=dual, champion=None, checkpoints=checkpoints, out=aden)
    pack_bundle(config, dataset=dataset, dual=dual, aden=aden, out=bundle)
    evaluate_model(config, dataset=dataset, bundle=bundle, champion=champion, out=folder / "evaluation")
    bless_model(config, evaluation=folder / "evaluation", out=folder / "verdict")
    verdict: dict[str, Any] = json.loads((folder / "verdict/verdict.json").read_text())
    return verdict


def failed(verdict: dict[str, Any]) -> set[str]:
    return {rule["name"] for rule in verdict["rules"] if not rule["passed"]}


def test_what_learns_from_shuffled_clicks_is_refused_and_its_unshuffled_twin_is_not(tmp_path: Path) -> None:
    true = train(tmp_path / "true", scenario="none", champion=None)
    assert true["blessed"], failed(true)
    shuffled = train(tmp_path / "shuffled", scenario="shuffled-clicks", champion=tmp_path / "true/bundle")
    assert not shuffled["blessed"]
    assert {"per_user_auc_floor", "log_loss_ceiling", "per_user_auc_against_champion"} <= failed(shuffled)
