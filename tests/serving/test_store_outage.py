"""A feature store that fails or is slow costs the clicks, flagged, and not the answer."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
from feature_world import World, at, day_of, fill
from redis_server import free_port, running_redis
from served_world import client_of

from storyrec.config import Config, Locations
from storyrec.features.build import build_features, materialize_features
from storyrec.features.repository import FEATURE_REPO
from storyrec.serving.ranking import NO_CLICKS, Clicks
from storyrec.serving.served import ServedBundle
from storyrec.serving.server import feature_store
from storyrec.serving.store import Looked, SequenceStore

CLICKS = (Clicks([1], [2]), NO_CLICKS)


class Store:
    """A store that can hang or fail."""

    def __init__(self) -> None:
        self.num_asked, self.fails, self.seconds = 0, False, 0.0
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, user_id: int) -> tuple[Clicks, Clicks]:
        self.num_asked += 1
        time.sleep(self.seconds)
        self.answers.wait(20)
        if self.fails:
            raise ConnectionError("no route to the store")
        return CLICKS


def clicks_of_one(world: World) -> tuple[int, list[tuple[int, int]]]:
    """A user with story clicks on the first day, and the clicks."""
    users = ((user, world.sequence("story", user=user, before=at(1))) for user in range(1, 12))
    return next((user, clicks) for user, clicks in users if clicks)


def pairs(looked: Looked) -> list[tuple[int, int]]:
    """The story clicks that were found, as the world has them."""
    clicks = looked.story_clicks
    return list(zip(map(int, clicks.item_ids_C), map(int, clicks.clicked_us_C), strict=True))


def look_up(store: SequenceStore, user_id: int = 1) -> Looked:
    return asyncio.run(store.look_up(user_id))


def look_up_at_once(store: SequenceStore, number: int) -> list[Looked]:
    async def all_of_them() -> list[Looked]:
        return await asyncio.gather(*(store.look_up(user_id) for user_id in range(number)))

    return asyncio.run(all_of_them())


def eventually_online(store: SequenceStore) -> None:
    deadline = time.monotonic() + 10
    while look_up(store).origin != "online":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_hangs_makes_one_request_wait_and_not_the_next_ones() -> None:
    hanging = Store()
    store = SequenceStore(hanging, deadline_seconds=0.1, open_seconds=0.1)
    assert look_up(store).story_clicks is CLICKS[0]
    hanging.answers.clear()
    looked = look_up(store)
    assert (looked.origin, looked.reason, looked.story_clicks) == ("unavailable", "deadline", NO_CLICKS)
    time.sleep(0.15)  # past the pause: but the store still has not answered
    started = time.monotonic()
    assert {looked.reason for looked in look_up_at_once(store, 100)} == {"circuit_open"}
    assert time.monotonic() - started < 0.1
    assert hanging.num_asked == 2
    hanging.answers.set()
    eventually_online(store)
    assert look_up(store).origin == "online"


def test_after_a_failure_one_request_tries_again() -> None:
    failing = Store()
    failing.fails = True
    store = SequenceStore(failing, deadline_seconds=1.0, open_seconds=0.2)
    assert look_up(store).reason == "error"
    assert {looked.reason for looked in look_up_at_once(store, 50)} == {"circuit_open"}
    assert failing.num_asked == 1
    time.sleep(0.25)
    assert [look_up(store).reason for _ in range(3)] == ["error", "circuit_open", "circuit_open"]
    failing.fails = False
    time.sleep(0.25)
    assert [look_up(store).origin for _ in range(3)] == ["online"] * 3


def test_requests_that_wait_behind_a_stuck_one_are_never_asked() -> None:
    hanging = Store()
    hanging.answers.clear()
    store = SequenceStore(hanging, deadline_seconds=0.2, open_seconds=0.1)
    assert {looked.reason for looked in look_up_at_once(store, 6)} == {"deadline"}
    hanging.answers.set()
    eventually_online(store)
    assert hanging.num_asked == 2


def test_requests_that_wait_behind_a_store_that_is_well_do_not_close_it() -> None:
    busy = Store()
    store = SequenceStore(busy, deadline_seconds=0.4, open_seconds=60.0)
    busy.seconds = 0.05
    for _ in range(4):
        looked = look_up_at_once(store, 20)  # more than twice of what it can do in time
        assert {(found.origin, found.reason) for found in looked} == {("online", ""), ("unavailable", "deadline")}
    assert look_up(store).origin == "online"


@pytest.mark.parametrize("deadline_seconds", [0.05])
def test_the_answer_says_that_the_clicks_are_missing(champion: ServedBundle, deadline_seconds: float) -> None:
    hanging = Store()
    hanging.answers.clear()
    with (
        client_of(champion, sequences=hanging, deadline_seconds=deadline_seconds) as client,
        client_of(champion) as bare,
    ):
        request = {"user_id": 1, "candidates": [1_000, 1_001]}
        answers = [client.post("/v1/rank", json=request).json() for _ in range(3)]
        expected = bare.post("/v1/rank", json=request).json()
        hanging.answers.set()
    assert {answer["sequences"] for answer in answers} == {"unavailable"}
    assert expected["sequences"] == "none"
    assert all(answer["stories"] == expected["stories"] for answer in answers)


def test_a_store_that_is_down_at_the_start_is_used_when_it_is_there(tmp_path: Path) -> None:
    world = fill(World(tmp_path), num_days=1)
    build_features(world.config, day=day_of(0))
    materialize_features(world.config, day=day_of(0))
    user, clicks = clicks_of_one(world)
    registry = tmp_path / "work/feast/registry.db"
    away = registry.rename(registry.with_suffix(".away"))
    registry.mkdir()
    store = SequenceStore(feature_store(world.config), deadline_seconds=60.0, open_seconds=0.1)
    assert look_up(store, user).reason == "error"
    registry.rmdir()
    away.rename(registry)
    time.sleep(0.15)
    looked = look_up(store, user)
    assert (looked.origin, pairs(looked)) == ("online", clicks)


def test_without_a_feature_repository_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEATURE_REPO, str(tmp_path))
    assert feature_store(World(tmp_path).config) is None
    assert feature_store(Config(locations=Locations(work="s3://bucket/work"))) is None


@pytest.mark.slow
def test_a_redis_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("STORYREC_REDIS", f"127.0.0.1:{port}")
    monkeypatch.setenv("STORYREC_FEAST_REGISTRY", f"sqlite:///{tmp_path}/registry.sqlite")
    world = fill(World(tmp_path), num_days=1)
    config = world.config.model_copy(update={"profile": "cluster"})
    user, clicks = clicks_of_one(world)
    with running_redis(port):
        build_features(config, day=day_of(0))
        materialize_features(config, day=day_of(0))
        store = SequenceStore(feature_store(config), deadline_seconds=2.0, open_seconds=0.2)
        looked = look_up(store, user)
        assert (looked.origin, pairs(looked)) == ("online", clicks)
    started = time.monotonic()
    assert {look_up(store, user).origin for _ in range(200)} == {"unavailable"}
    assert time.monotonic() - started < 5  # one deadline, not two hundred
    with running_redis(port):
        deadline = time.monotonic() + 40
        while look_up(store, user).origin != "online":
            assert time.monotonic() < deadline
            time.sleep(0.1)
