"""The pipeline under Kubeflow's local runner, judged by what is on the disk afterwards."""

import json
from datetime import date
from html import unescape
from pathlib import Path

import pytest
from components.bless_model import bless_model
from components.pipeline import deploy_or_keep, run_local
from kfp import dsl, local

from builders import planted_config, write_validated
from storyrec.component import flat_figures, folder_or_none, is_blessed, judged_folder
from storyrec.config import Config, Locations
from storyrec.errors import StoryrecError
from storyrec.evaluate import evaluate_model
from storyrec.gate.verdict import Rule, Verdict, verdict_json
from storyrec.manifest import verify_folder
from storyrec.registry import read_champion
from storyrec.storage import open_storage
from trained import World

DAY = date(2026, 3, 4)


@pytest.fixture(scope="module")
def evaluation(world: World, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "evaluation"
    evaluate_model(world.config, dataset=world.dataset, bundle=packed, champion=None, out=out)
    return out


def write_verdict(folder: Path, packed: Path, *, blessed: bool) -> Path:
    manifest = verify_folder(packed)
    reason = "it's judged by hand"  # an apostrophe, which the local runner's conditions cannot read
    rule = Rule("by_hand", blessed, {}, None, reason)
    folder.mkdir()
    verdict = Verdict(blessed, manifest.day.isoformat(), manifest.version, None, (rule,))
    (folder / "model_card.md").write_text("# Model card\n")
    (folder / "verdict.json").write_bytes(verdict_json(verdict))
    return folder


def test_the_verdict_decides_on_both_outcomes(packed: Path, evaluation: Path, tmp_path: Path) -> None:
    """The registry says it, not the state of the run: a runner that takes neither branch reports success."""
    locations = Locations(registry=str(tmp_path / "registry"), work=str(tmp_path / "work"))
    config = Config(locations=locations)
    registry = open_storage(locations.registry)
    manifest = verify_folder(packed)
    outcome = tmp_path / "work" / f"runs/dt={manifest.day}/outcome.json"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "scratch"), raise_on_error=True)

    @dsl.pipeline(name="decide")
    def decide(config_json: str, bundle: str, evaluation: str, verdict: str) -> None:
        deploy_or_keep(
            lambda task: task.set_caching_options(enable_caching=False),
            config_json=config_json,
            bundle=dsl.importer(artifact_uri=bundle, artifact_class=dsl.Model).output,
            evaluation=dsl.importer(artifact_uri=evaluation, artifact_class=dsl.Artifact).output,
            verdict=dsl.importer(artifact_uri=verdict, artifact_class=dsl.Artifact).output,
        )

    def run(verdict: Path) -> None:
        decide(
            config_json=config.model_dump_json(), bundle=str(packed), evaluation=str(evaluation), verdict=str(verdict)
        )

    run(write_verdict(tmp_path / "refused", packed, blessed=False))
    assert read_champion(registry) is None
    assert not json.loads(outcome.read_text())["deployed"]

    run(write_verdict(tmp_path / "blessed", packed, blessed=True))
    pointer = read_champion(registry)
    assert pointer is not None
    assert pointer.champion.version == manifest.version
    assert json.loads(outcome.read_text())["deployed"]
    report = (outcome.parent / "report.html").read_text()
    assert "judged by hand" in report


def test_the_report_that_the_ui_shows_tells_the_verdict(evaluation: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("verdict", "reasons", "report")}
    kinds = {"verdict": dsl.Artifact, "reasons": dsl.Markdown, "report": dsl.HTML}
    bless_model.python_func(
        config_json=Config(locations=Locations(work=str(tmp_path / "work"))).model_dump_json(),
        evaluation=dsl.Artifact(uri=str(evaluation)),
        **{name: kind(uri=str(places[name])) for name, kind in kinds.items()},
    )
    verdict = json.loads((places["verdict"] / "verdict.json").read_text())
    failed = [rule["reason"] for rule in verdict["rules"] if not rule["passed"]]
    page = unescape(places["report"].read_text())
    assert failed  # of so few users nothing can be said
    assert all(reason in page and reason in places["reasons"].read_text() for reason in failed)
    assert "Not blessed: the champion stays." in page
    assert "Not blessed" not in (evaluation / "report.html").read_text()


def test_a_failed_component_gives_its_message_and_no_outcome(tmp_path: Path) -> None:
    locations = Locations(work=str(tmp_path / "work"), registry=str(tmp_path / "registry"))
    stale = tmp_path / "work" / f"runs/dt={DAY}/outcome.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    with pytest.raises(StoryrecError) as caught:
        run_local(Config(locations=locations), DAY)
    assert str(DAY) in caught.value.found
    assert caught.value.remedy
    assert "kfp" not in str(caught.value)
    assert not stale.exists()  # a failed rerun is not taken for a finished day


@pytest.mark.slow
def test_a_day_runs_from_validated_logs_to_a_champion_and_its_poisoned_twin_does_not(tmp_path: Path) -> None:
    config = planted_config(tmp_path / "work")
    small = {"width": 16, "head_widths": (16, 8)}
    # of a model that has hardly learned, on a machine that may be busy
    lenient = {"min_users": 5, "min_per_user_auc": 0.0, "min_ndcg": 0.0, "max_log_loss_ratio": 2.0}
    lenient |= {"max_calibration_error": 1.0, "max_latency_ms": 10_000.0}
    config = config.model_copy(
        update={
            "locations": config.locations.model_copy(update={"registry": str(tmp_path / "registry")}),
            "model": config.model.model_copy(update=small),
            "gate": config.gate.model_copy(update=lenient),
        }
    )
    day = write_validated(tmp_path / "work", num_days=4, num_users=60, items_per_day=20)
    run_local(config, day)
    registry = open_storage(config.locations.registry)
    pointer = registry.read("champion.json")
    runs = tmp_path / "work" / f"runs/dt={day}"
    assert json.loads((runs / "outcome.json").read_text())["deployed"]
    for name in ("evaluation.json", "verdict.json", "report.html"):
        assert (runs / name).is_file()

    strict = config.model_copy(update={"gate": config.gate.model_copy(update={"min_per_user_auc": 1.0})})
    run_local(strict, day)
    assert not json.loads((runs / "outcome.json").read_text())["deployed"]
    assert registry.read("champion.json") == pointer


def test_a_champion_that_is_not_there_is_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "manifest.json").write_text("{}")
    assert folder_or_none(tmp_path / "empty") is None
    assert folder_or_none(tmp_path / "missing") is None
    assert folder_or_none(tmp_path / "full") == tmp_path / "full"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"blessed": "true"}', '{"blessed": 1}'])
def test_anything_but_a_clear_yes_is_a_no(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "verdict.json").write_text(content)
    assert not is_blessed(tmp_path)


def test_figures_that_are_not_finite_stay_out_of_the_ui(tmp_path: Path) -> None:
    """A NaN among the metrics made the local runner fail the evaluated run."""
    metrics = {"per_user_auc": float("nan"), "log_loss": 0.5, "num_users": 3}
    judged = {"challenger": {"metrics": metrics}, "champion": None}
    (tmp_path / "evaluation.json").write_text(json.dumps(judged))
    assert flat_figures(tmp_path) == {"challenger_log_loss": 0.5, "challenger_num_users": 3.0}


def test_a_damaged_validation_report_does_not_stop_the_page(packed: Path, evaluation: Path, tmp_path: Path) -> None:
    manifest = verify_folder(packed)
    work = tmp_path / "work"
    (work / "reports").mkdir(parents=True)
    (work / f"reports/dt={manifest.day}.json").write_text("{")
    verdict = write_verdict(tmp_path / "verdict", packed, blessed=False)
    config = Config(locations=Locations(work=str(work)))
    with judged_folder(config, evaluation=evaluation, verdict=verdict) as folder:
        assert "judged by hand" in (folder / "report.html").read_text()
    assert not folder.exists()
