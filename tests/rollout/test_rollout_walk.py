"""A rollout walks from unseen to champion by what the answer log says, or is withdrawn."""

import io
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from storyrec.cli import app
from storyrec.config import Config, Locations, Rollout, Serving, save_config
from storyrec.errors import ConfigError, Conflict, ModelError
from storyrec.manifest import seal_folder
from storyrec.promote import set_canary, withdraw_canary
from storyrec.registry import push_bundle, read_champion, switch_champion
from storyrec.rollout.checks import CanaryLimits
from storyrec.rollout.traffic import read_arms
from storyrec.rollout.walk import Step, advance
from storyrec.serving.answer_log import SCHEMA
from storyrec.storage import FolderStorage, write_file

LIMITS = CanaryLimits(min_requests=50, max_error_rate=0.02, max_latency_ratio=1.5, max_drift=0.25)
DEPLOYMENT = Path(__file__).parents[2] / "deploy" / "serving.yaml"
SHARES = (0.0, 0.05, 0.25)


def push(registry: FolderStorage, folder: Path, *, day: date) -> str:
    folder.mkdir()
    write_file(folder / "ranker.onnx", f"model of {day}".encode())
    version = seal_folder(folder, day=day).version
    verdict = json.dumps({"blessed": True, "challenger": version}).encode()
    push_bundle(registry, folder, records={"verdict.json": verdict})
    return version


class Place:
    """A registry with a champion and a canary, and a folder of answers."""

    def __init__(self, folder: Path) -> None:
        self.registry, self.answers = FolderStorage(folder / "registry"), folder / "answers"
        self.first = push(self.registry, folder / "first", day=date(2026, 3, 8))
        switch_champion(self.registry, version=self.first, day=date(2026, 3, 8), expected_version=None)
        self.second = push(self.registry, folder / "second", day=date(2026, 3, 9))
        self.number = 0

    def start(self, share: float = 0.0) -> datetime:
        """Make the second the canary; since when it is that."""
        pointer = set_canary(self.registry, self.second, share=share, why="a try")
        assert pointer.canary is not None
        return datetime.fromisoformat(pointer.canary.since)

    def log(self, version: str, num: int, *, at: datetime, num_errors: int = 0, **columns: Any) -> None:
        """Have a server log answers."""
        generator = np.random.default_rng(num)
        rows: list[dict[str, Any]] = [
            {
                "request_id": str(number),
                "user_id": number,
                "answered_at": at,
                "model_version": version,
                "latency_ms": 5.0,
                "scores": generator.random(20),
                **columns,
            }
            for number in range(num - num_errors)
        ]
        rows += [{"user_id": 1, "answered_at": at, "model_version": version, "error": "ValueError()"}] * num_errors
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
        self.number += 1
        write_file(self.answers / f"dt={at:%Y-%m-%d}" / f"part-{self.number}.parquet", buffer.getvalue())

    def advance(self, at: datetime) -> Step:
        return advance(self.registry, self.answers, shares=SHARES, min_minutes=60, limits=LIMITS, at=at)

    @property
    def state(self) -> tuple[str, str | None, float]:
        pointer = read_champion(self.registry)
        assert pointer is not None
        canary = pointer.canary
        return pointer.champion.version, canary.version if canary else None, canary.share if canary else 0.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_canary_that_serves_as_the_champion_does_becomes_it_share_by_share(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = datetime(2026, 3, 10, 23, 30, tzinfo=UTC)
    monkeypatch.setattr("storyrec.promote.now", lambda: clock.isoformat(timespec="seconds"))
    place.start()
    for number, (share, action) in enumerate([(0.0, "widen"), (0.05, "widen"), (0.25, "promote")]):
        assert place.state == (place.first, place.second, share)
        for version in (place.first, place.second):
            place.log(version, 60, at=clock + timedelta(minutes=1))
        assert place.advance(clock + timedelta(minutes=59)).action == "wait"
        clock += timedelta(minutes=60)
        step = place.advance(clock)
        assert (step.action, step.share) == (action, share)
        assert step.next_share == (*SHARES, 1.0)[number + 1]
        assert place.advance(clock + timedelta(minutes=59)).action == ("none" if action == "promote" else "wait")
    assert place.state == (place.second, None, 0.0)
    pointer = read_champion(place.registry)
    assert pointer is not None
    assert [change.action for change in pointer.changes] == ["deploy", "canary", "canary", "canary", "promote"]
    assert "stability index" in pointer.changes[-1].why


def test_without_enough_answers_it_waits_for_them(place: Place) -> None:
    since = place.start(0.05)
    late = since + timedelta(hours=5)
    place.log(place.first, 60, at=since)
    place.log(place.second, 49, at=since)
    place.log(place.second, 1_000, at=since - timedelta(seconds=1))  # with the share of before
    place.log("0" * 16, 1_000, at=since)
    place.log(place.second, 1_000, at=since, user_id=None)
    step = place.advance(late)
    assert (step.action, step.next_share) == ("wait", 0.05)
    assert "49 answers" in step.why
    place.log(place.second, 1, at=since)
    assert place.advance(late).action == "widen"


def test_with_too_few_answers_of_the_champion_it_waits_for_them(place: Place) -> None:
    since = place.start(0.9)
    place.log(place.first, 49, at=since)
    place.log(place.second, 1_000, at=since, latency_ms=900.0)
    step = place.advance(since + timedelta(hours=5))
    assert (step.action, step.next_share) == ("wait", 0.9)
    assert "49 answers" in step.why


def test_a_shadow_is_not_withdrawn_for_being_slow(place: Place) -> None:
    since = place.start(0.0)
    place.log(place.first, 60, at=since)
    place.log(place.second, 60, at=since, latency_ms=900.0)
    assert place.advance(since + timedelta(hours=5)).action == "widen"


@pytest.mark.parametrize(("bad", "said"), [({"num_errors": 2}, "failed"), ({"latency_ms": 9.0}, "ms")])
def test_one_that_does_not_is_withdrawn_at_once(place: Place, bad: dict[str, Any], said: str) -> None:
    since = place.start(0.05)
    place.log(place.first, 60, at=since, num_errors=1)
    place.log(place.second, 60, at=since, **bad)
    step = place.advance(since + timedelta(minutes=1))
    assert (step.action, step.next_share) == ("withdraw", 0.0)
    assert said in step.why
    assert place.state == (place.first, None, 0.0)
    pointer = read_champion(place.registry)
    assert pointer is not None
    assert [gone.version for gone in pointer.withdrawn] == [place.second]
    assert place.advance(since + timedelta(hours=9)).action == "none"


def test_without_an_answer_log_a_canary_cannot_be_judged(place: Place) -> None:
    arguments: dict[str, Any] = {"shares": SHARES, "min_minutes": 60, "limits": LIMITS, "at": datetime.now(UTC)}
    assert advance(place.registry, None, **arguments).action == "none"
    place.start()
    with pytest.raises(ConfigError, match="answers are not logged"):
        advance(place.registry, None, **arguments)
    assert place.state == (place.first, place.second, 0.0)


@pytest.mark.parametrize("share", [0.05, 0.25])  # would be widened, would be the champion
def test_a_step_that_was_overtaken_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    since = place.start(share)
    for version in (place.first, place.second):
        place.log(version, 60, at=since)

    def overtaken(*arguments: Any, **more: Any) -> Any:
        withdraw_canary(place.registry, place.second, why="a server saw it fail")
        return read_arms(*arguments, **more)

    monkeypatch.setattr("storyrec.rollout.walk.read_arms", overtaken)
    with pytest.raises(Conflict):
        place.advance(since + timedelta(hours=2))
    assert place.state == (place.first, None, 0.0)


def test_a_canary_older_than_the_champion_is_withdrawn(place: Place, tmp_path: Path) -> None:
    place.start(0.05)
    third = push(place.registry, tmp_path / "third", day=date(2026, 3, 10))
    switch_champion(place.registry, version=third, day=date(2026, 3, 10), expected_version=place.first)
    assert place.advance(datetime.now(UTC)).action == "withdraw"
    assert place.state == (third, None, 0.0)


def test_a_canary_of_the_champions_day_goes_on(place: Place, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_file(tmp_path / "other" / "ranker.onnx", b"of other settings")
    version = seal_folder(tmp_path / "other", day=date(2026, 3, 8)).version
    verdict = json.dumps({"blessed": True, "challenger": version}).encode()
    push_bundle(place.registry, tmp_path / "other", records={"verdict.json": verdict})
    set_canary(place.registry, version, share=0.05, why="a try")
    assert place.advance(datetime.now(UTC)).action == "wait"
    assert place.state == (place.first, version, 0.05)


def test_nobody_has_answered_yet(tmp_path: Path) -> None:
    arm = read_arms(tmp_path / "none", since=datetime(2026, 3, 9, tzinfo=UTC), versions=["a"])["a"]
    assert (arm.num_requests, arm.num_errors, len(arm.latency_ms_A), len(arm.scores_K)) == (0, 0, 0, 0)


def test_the_commands(place: Place, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    config = Config(
        locations=Locations(registry=place.registry.url),
        serving=Serving(answers=str(place.answers)),
        rollout=Rollout(min_requests=50, min_minutes=0),
    )
    save_config(config, settings)

    def said(*arguments: str) -> str:
        answer = CliRunner().invoke(app, ["rollout", *arguments, "--config", str(settings)])
        if answer.exception is not None:
            raise answer.exception
        return answer.output

    assert json.loads(said("advance"))["action"] == "none"
    assert said("start", place.second, "--why", "a try").startswith(f"champion {place.first}, canary {place.second}")
    assert place.state == (place.first, place.second, 0.0)
    assert json.loads(said("advance"))["action"] == "wait"
    with pytest.raises(ConfigError, match="KServe has no shadows"):
        said("manifest", "--deployment", str(DEPLOYMENT))
    assert "5% of the users" in said("start", place.second, "--share", "0.05", "--why", "good")
    assert place.second in said("manifest", "--deployment", str(DEPLOYMENT))
    assert said("stop", place.second, "--why", "enough").endswith(f"withdrawn {place.second}\n")
    since = place.start(0.05)
    for version, num_errors in ((place.first, 0), (place.second, 30)):
        place.log(version, 60, at=since, num_errors=num_errors)
    with pytest.raises(ModelError, match=r"was withdrawn at 5% of the users: 30 of 60 requests failed"):
        said("advance")
    assert place.state == (place.first, None, 0.0)


@pytest.mark.parametrize("shares", [[], [0.1, 0.1], [0.2, 0.1], [1.0], [-0.1]])
def test_shares_that_do_not_widen_are_refused(tmp_path: Path, shares: list[float]) -> None:
    from storyrec.config import load_config

    (tmp_path / "bad.toml").write_text(f"[rollout]\nshares = {shares}\n")
    with pytest.raises(ConfigError, match=r"rollout\.shares"):
        load_config(tmp_path / "bad.toml")
