"""Deployment by its effects: what the registry and the run's folder hold afterwards."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from evaluated import Evaluated
from s3_server import S3Server
from storyrec.bundle import Bundle
from storyrec.config import Config, Locations, Rollout
from storyrec.deploy import Outcome, deploy_model, keep_champion, query_pushed
from storyrec.errors import ModelError, StorageError
from storyrec.evaluate import evaluate_model
from storyrec.gate.bless import bless_model
from storyrec.manifest import seal_folder
from storyrec.promote import promote, set_canary, withdraw_canary
from storyrec.registry import fetch_bundle, push_bundle, read_champion, rollback, switch_champion
from storyrec.storage import FolderStorage, Storage, open_storage
from trained import World

DAYS = tuple(date(2026, 3, day) for day in range(4, 9))


@dataclass(frozen=True)
class Place:
    """A registry and a work folder."""

    config: Config
    registry: Storage
    work: Path

    def pointer(self) -> bytes | None:
        found = self.registry.read_versioned("champion.json")
        return found[0] if found else None

    def outcome(self, day: date) -> dict[str, object]:
        return json.loads((self.work / f"runs/dt={day}/outcome.json").read_text())

    def champion(self) -> str | None:
        pointer = read_champion(self.registry)
        return pointer.champion.version if pointer else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    locations = Locations(registry=str(tmp_path / "registry"), work=str(tmp_path / "work"))
    return Place(Config(locations=locations), FolderStorage(tmp_path / "registry"), tmp_path / "work")


@pytest.fixture(params=["folder", "s3"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    endpoint = ""
    url = str(tmp_path / "registry")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        url, endpoint = server.new_storage().url, server.endpoint
    locations = Locations(registry=url, work=str(tmp_path / "work"), s3_endpoint=endpoint)
    return Place(Config(locations=locations), open_storage(url, s3_endpoint=endpoint), tmp_path / "work")


@dataclass(frozen=True)
class Run:
    """The folders that a day's run hands to its last step."""

    bundle: Path
    evaluation: Path
    verdict: Path
    version: str
    day: date

    def deploy(self, place: Place) -> Outcome:
        return deploy_model(place.config, bundle=self.bundle, evaluation=self.evaluation, verdict=self.verdict)


def make_run(
    place: Place,
    packed: Path,
    folder: Path,
    *,
    day: date,
    champion: str | None,
    worse: bool = False,
) -> Run:
    """A bundle of `day`, evaluated and judged against `champion`; the gate really judges."""
    bundle = folder / "bundle"
    shutil.copytree(packed, bundle)
    version = seal_folder(bundle, day=day).version
    evaluated = Evaluated.of()
    evaluated.day, evaluated.versions = day.isoformat(), (version, champion or "")
    evaluated.challenger = evaluated.spoiled(0.5 if worse else 0.0)
    evaluated.champion = evaluated.spoiled(0.1) if champion else None
    evaluated.write(folder / "evaluation")
    bless_model(place.config, evaluation=folder / "evaluation", out=folder / "verdict")
    return Run(bundle, folder / "evaluation", folder / "verdict", version, day)


def test_a_first_model_and_its_successor_are_deployed(any_place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(any_place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    outcome = first.deploy(any_place)
    assert (outcome.deployed, outcome.status, outcome.previous) == (True, "deployed", None)
    assert any_place.champion() == first.version

    second = make_run(any_place, packed, tmp_path / "2", day=DAYS[1], champion=first.version)
    outcome = second.deploy(any_place)
    assert (outcome.deployed, outcome.version, outcome.previous) == (True, second.version, first.version)
    pointer = json.loads(any_place.pointer() or b"")
    assert (pointer["version"], pointer["previous"]["version"]) == (second.version, first.version)
    change = pointer["changes"][-1]
    assert (change["action"], change["version"]) == ("deploy", second.version)
    assert change["why"] == "; ".join(outcome.reasons)
    assert change["blessing"] == hashlib.sha256((second.verdict / "verdict.json").read_bytes()).hexdigest()

    fetch_bundle(any_place.registry, second.version, tmp_path / "copy")
    assert Bundle.load(tmp_path / "copy").version == second.version
    records = {"evaluation.json": second.evaluation, "verdict.json": second.verdict, "model_card.md": second.verdict}
    for name, source in records.items():
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
        assert (any_place.work / f"runs/dt={DAYS[1]}" / name).read_bytes() == (source / name).read_bytes()
    assert (any_place.work / f"runs/dt={DAYS[1]}/report.html").read_text() == "<p>report</p>"
    recorded = any_place.outcome(DAYS[1])
    assert recorded == {
        "day": "2026-03-05",
        "status": "deployed",
        "deployed": True,
        "version": second.version,
        "previous": first.version,
        "champion": second.version,
        "reasons": list(outcome.reasons),
    }


def test_what_evaluate_model_writes_can_be_judged_and_deployed(
    place: Place, world: World, packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed, tmp_path / "champion")
    champion = seal_folder(tmp_path / "champion", day=DAYS[0] - timedelta(days=3)).version
    for before in (None, tmp_path / "champion"):
        evaluate_model(world.config, dataset=world.dataset, bundle=packed, champion=before, out=tmp_path / "evaluation")
        bless_model(place.config, evaluation=tmp_path / "evaluation", out=tmp_path / "verdict")
        verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
        assert not any("could not be judged" in rule["reason"] for rule in verdict["rules"])
        assert verdict["challenger"] == Bundle.load(packed).version
        assert verdict["champion"] == (champion if before else None)
    # the same model against itself: no user is better or worse
    against = [rule for rule in verdict["rules"] if rule["name"].endswith("_against_champion")]
    assert len(against) == 4
    for rule in against:
        assert rule["passed"]
        assert rule["figures"]["estimate"] == rule["figures"]["lower"] == 0


def test_by_canary_a_successor_serves_beside_the_champion_until_it_is_promoted_or_withdrawn(
    place: Place, packed: Path, tmp_path: Path
) -> None:
    rollout = Rollout(by_canary=True, shares=(0.05, 0.25))
    place = replace(place, config=place.config.model_copy(update={"rollout": rollout}))
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    assert first.deploy(place).status == "deployed"  # there is nothing to serve beside
    second = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version)
    for _ in range(2):
        outcome = second.deploy(place)
        assert (outcome.status, outcome.deployed, outcome.champion) == ("in rollout", False, first.version)
        assert "5% of the users" in outcome.reasons[0]
    pointer = read_champion(place.registry)
    assert pointer is not None
    assert pointer.canary is not None
    assert (pointer.champion.version, pointer.canary.version, pointer.canary.share) == (
        first.version,
        second.version,
        0.05,
    )
    assert [change.action for change in pointer.changes] == ["deploy", "canary"]

    earlier = make_run(place, packed, tmp_path / "0", day=DAYS[0], champion=None)
    assert earlier.deploy(place).status == "already deployed"
    withdraw_canary(place.registry, second.version, why="slow")
    assert second.deploy(place).reasons == ("it served before and was rolled back or withdrawn",)
    third = make_run(place, packed, tmp_path / "3", day=DAYS[2], champion=first.version)
    assert third.deploy(place).status == "in rollout"
    promote(place.registry, third.version, why="good")
    assert third.deploy(place).status == "already deployed"


def test_a_canary_that_saw_too_little_traffic_gives_way_to_the_next_days(
    place: Place, packed: Path, tmp_path: Path
) -> None:
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    first.deploy(place)
    place = replace(place, config=place.config.model_copy(update={"rollout": Rollout(by_canary=True)}))
    second = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version)
    second.deploy(place)
    set_canary(place.registry, second.version, share=0.25, why="it did well")
    third = make_run(place, packed, tmp_path / "3", day=DAYS[2], champion=first.version)
    outcome = third.deploy(place)
    assert (outcome.status, outcome.champion) == ("in rollout", first.version)
    pointer = read_champion(place.registry)
    assert pointer is not None
    assert pointer.canary is not None
    assert (pointer.canary.version, pointer.canary.share) == (third.version, 0.0)  # it begins at the beginning
    assert pointer.canary.since == pointer.canary.deployed_at
    assert (pointer.champion.version, pointer.withdrawn) == (first.version, ())  # the one before did nothing wrong
    again = second.deploy(place)
    assert (again.status, again.champion) == ("not deployed", first.version)
    assert again.reasons[0] == f"the canary {third.version} is of {DAYS[2]}, a later day"


def test_a_day_run_again_with_other_settings_replaces_its_canary(place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    first.deploy(place)
    place = replace(place, config=place.config.model_copy(update={"rollout": Rollout(by_canary=True)}))
    make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version).deploy(place)
    changed = shutil.copytree(packed, tmp_path / "changed")
    settings = changed / "config.toml"
    settings.write_text(settings.read_text() + "# changed\n")
    other = make_run(place, changed, tmp_path / "3", day=DAYS[1], champion=first.version)
    assert other.deploy(place).status == "in rollout"
    pointer = read_champion(place.registry)
    assert pointer is not None
    assert pointer.canary is not None
    assert pointer.canary.version == other.version


def test_a_worse_challenger_leaves_the_pointer_and_pushes_nothing(place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    first.deploy(place)
    before = {key: place.registry.read(key) for key in place.registry.list()}
    worse = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version, worse=True)
    for outcome in (
        worse.deploy(place),
        keep_champion(place.config, bundle=worse.bundle, verdict=worse.verdict, evaluation=worse.evaluation),
    ):
        assert (outcome.deployed, outcome.status) == (False, "not deployed")
        assert outcome.champion == outcome.previous == first.version
        assert any(
            reason.startswith("per-user AUC 0.") and " worse than the champion's " in reason
            for reason in outcome.reasons
        )
        assert {key: place.registry.read(key) for key in place.registry.list()} == before
        assert place.outcome(DAYS[1])["deployed"] is False
        assert place.outcome(DAYS[1])["reasons"] == list(outcome.reasons)


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "not json",
        "a list",
        {"blessed": "yes"},
        {"blessed": 1},
        {"blessed": None},
        {"challenger": "0" * 16},
        {"challenger": None},
        {"day": "2026-03-05"},
        {"champion": KeyError},
        {"reasons": []},
    ],
)
def test_a_verdict_that_is_no_blessing_of_this_bundle_deploys_nothing(
    place: Place, packed: Path, tmp_path: Path, damage: str | dict[str, object]
) -> None:
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    path = run.verdict / "verdict.json"
    if isinstance(damage, dict):
        changed = json.loads(path.read_text()) | damage
        path.write_text(json.dumps({name: value for name, value in changed.items() if value is not KeyError}))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("[]" if damage == "a list" else "{")
    outcome = run.deploy(place)
    assert not outcome.deployed
    assert outcome.reasons
    assert place.registry.list() == []
    assert place.outcome(DAYS[0])["reasons"] == list(outcome.reasons)


def test_a_missing_evaluation_deploys_nothing(place: Place, packed: Path, tmp_path: Path) -> None:
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    (run.evaluation / "evaluation.json").unlink()
    outcome = run.deploy(place)
    assert not outcome.deployed
    assert "evaluation.json" in outcome.reasons[0]
    assert place.registry.list() == []


def test_a_run_that_is_run_again_is_already_deployed(place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    first.deploy(place)
    before = place.pointer()
    again = first.deploy(place)
    assert (again.deployed, again.status, again.previous) == (True, "already deployed", None)
    assert place.pointer() == before

    second = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version)
    second.deploy(place)
    before = place.pointer()
    late = first.deploy(place)
    assert (late.deployed, late.status, late.champion) == (True, "already deployed", second.version)
    assert place.pointer() == before


def test_a_later_days_champion_is_not_replaced(place: Place, packed: Path, tmp_path: Path) -> None:
    make_run(place, packed, tmp_path / "1", day=DAYS[2], champion=None).deploy(place)
    before = place.pointer()
    outcome = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=None).deploy(place)
    assert not outcome.deployed
    assert "a later day" in outcome.reasons[0]
    assert place.pointer() == before


@pytest.mark.parametrize("judged_against", [None, "f" * 16])
def test_only_the_champion_that_was_judged_is_replaced(
    place: Place, packed: Path, tmp_path: Path, judged_against: str | None
) -> None:
    make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None).deploy(place)
    before = place.pointer()
    outcome = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=judged_against).deploy(place)
    assert not outcome.deployed
    assert "judged against" in outcome.reasons[0]
    assert place.pointer() == before


def test_what_was_rolled_back_is_not_deployed_by_a_rerun(place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    second = make_run(place, packed, tmp_path / "2", day=DAYS[1], champion=first.version)
    first.deploy(place)
    second.deploy(place)
    rollback(place.registry)
    outcome = second.deploy(place)
    assert not outcome.deployed
    assert "rolled back" in outcome.reasons[0]
    assert place.champion() == first.version


def test_of_two_racing_deployers_one_wins(any_place: Place, packed: Path, tmp_path: Path) -> None:
    first = make_run(any_place, packed, tmp_path / "0", day=DAYS[0], champion=None)
    first.deploy(any_place)
    runs = [make_run(any_place, packed, tmp_path / str(day), day=day, champion=first.version) for day in DAYS[1:3]]
    barrier = Barrier(2)

    def deploy(run: Run) -> Outcome:
        barrier.wait()
        return run.deploy(any_place)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(deploy, runs))
    winners = [outcome for outcome in outcomes if outcome.deployed]
    assert len(winners) == 1
    assert any_place.champion() == winners[0].version
    for outcome in outcomes:
        assert any_place.outcome(outcome.day)["deployed"] is outcome.deployed


def test_a_deployment_lost_at_the_last_moment_is_recorded(
    any_place: Place, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(any_place, packed, tmp_path / "1", day=DAYS[0], champion=None)

    def overtaken(registry: Storage, version: str, folder: Path) -> None:
        switch_champion(registry, version="d" * 16, day=DAYS[1], expected_version=None)

    monkeypatch.setattr("storyrec.deploy.query_pushed", overtaken)
    outcome = run.deploy(any_place)
    assert (outcome.deployed, outcome.champion) == (False, "d" * 16)
    assert "d" * 16 in outcome.reasons[0]
    assert any_place.champion() == "d" * 16


def test_a_kill_during_the_upload_is_finished_by_a_rerun(any_place: Place, packed: Path, tmp_path: Path) -> None:
    run = make_run(any_place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    push_bundle(any_place.registry, run.bundle)
    # as if the push had been killed before its last two writes
    any_place.registry.delete(f"bundles/{run.version}/manifest.json")
    any_place.registry.write(f"bundles/{run.version}/ranker.onnx", b"half")
    with pytest.raises(ModelError, match="never finished"):
        fetch_bundle(any_place.registry, run.version, tmp_path / "copy")
    assert any_place.champion() is None
    assert run.deploy(any_place).deployed
    fetch_bundle(any_place.registry, run.version, tmp_path / "copy")
    assert Bundle.load(tmp_path / "copy").version == run.version


def test_a_kill_between_switch_and_record_is_finished_by_a_rerun(place: Place, packed: Path, tmp_path: Path) -> None:
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    run.deploy(place)
    (place.work / f"runs/dt={DAYS[0]}/outcome.json").unlink()
    run.deploy(place)
    assert place.outcome(DAYS[0])["status"] == "already deployed"
    assert place.outcome(DAYS[0])["deployed"] is True


def test_a_tampered_bundle_is_refused(place: Place, packed: Path, tmp_path: Path) -> None:
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    with (run.bundle / "ranker.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(ModelError, match=r"ranker\.onnx was changed"):
        run.deploy(place)
    assert place.registry.list() == []


def test_a_bundle_damaged_in_the_registry_does_not_get_the_pointer(place: Place, packed: Path, tmp_path: Path) -> None:
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    push_bundle(place.registry, run.bundle)
    place.registry.write(f"bundles/{run.version}/ranker.onnx", b"rotten")
    with pytest.raises(ModelError, match=r"ranker\.onnx was changed"):
        run.deploy(place)
    assert place.champion() is None


def test_a_bundle_that_scores_nan_does_not_get_the_pointer(place: Place, packed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    vectors_ND = np.load(broken / "items" / "story_vectors.npy")
    np.save(broken / "items" / "story_vectors.npy", np.full_like(vectors_ND, np.nan))
    run = make_run(place, broken, tmp_path / "1", day=DAYS[0], champion=None)
    with pytest.raises(ModelError, match="no probabilities"):
        run.deploy(place)
    assert place.champion() is None
    with pytest.raises(ModelError):
        query_pushed(place.registry, run.version, tmp_path / "fetched")


def test_a_registry_that_refuses_changes_nothing(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    config = Config(locations=Locations(registry=str(tmp_path / "file"), work=str(tmp_path / "work")))
    place = Place(config, FolderStorage(tmp_path / "file"), tmp_path / "work")
    run = make_run(place, packed, tmp_path / "1", day=DAYS[0], champion=None)
    with pytest.raises(StorageError, match="cannot write"):
        run.deploy(place)
    assert not (tmp_path / "work").exists()
