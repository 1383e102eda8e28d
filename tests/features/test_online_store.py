"""The packed stores themselves: racing writers, kills, what another store or another schema left."""

import sqlite3
import threading
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feature_world import NOW, World, at, day_of, microseconds
from online_world import VIEW, clicks_of, opened, push
from redis_server import free_port, running_redis

from storyrec.config import Config
from storyrec.errors import DataError, PlatformError
from storyrec.features.build import build_features, materialize_features
from storyrec.features.merge import Recent, pack_sequence
from storyrec.features.reconcile import reconcile_sequences


@pytest.fixture(params=["local", "cluster"])
def config(request: pytest.FixtureRequest, world: World) -> Config:
    """Both stores; Redis is a real one."""
    if request.param == "cluster":
        request.getfixturevalue("redis")
    return world.config.model_copy(update={"profile": request.param})


def test_writers_that_race_lose_no_click(config: Config) -> None:
    clients = [opened(config) for _ in range(3)]
    layout, start = clients[0].layout(VIEW), threading.Barrier(len(clients))

    def write(writer: int) -> None:
        client = clients[writer]
        start.wait()
        for number in range(6):
            click = (microseconds(at(0)) + 3 * number + writer, 1 + writer)
            values = {user: pack_sequence(layout, Recent(0, [click])) for user in range(1, 40)}
            client._online.put(client._config, layout, values)

    threads = [threading.Thread(target=write, args=[writer]) for writer in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [(microseconds(at(0)) + place, 1 + place % 3) for place in range(18)]
    assert all(clicks_of(clients[0], user) == expected for user in range(1, 40))


def test_pushed_clicks_stand_until_their_day_states_its_own(world: World, config: Config) -> None:
    build_features(config, day=day_of(3))
    materialize_features(config, day=day_of(3), now=NOW)
    client = opened(config)
    last_clicks = {u: world.sequence("story", user=u, before=at(5)) for u in range(1, 13)}
    user = next(u for u, clicks in last_clicks.items() if clicks and clicks[-1][1] >= microseconds(at(4)))
    day_before = [(us, item) for item, us in world.sequence("story", user=user, before=at(4))]
    assert day_before
    later, last, late = (at(5, second=9), at(6), at(2))
    push(client, (user, 70, later), (user, 71, last))
    push(client, (user, 72, late))  # of a day that is online already, which says what was clicked
    assert clicks_of(client, user) == [*day_before, (microseconds(later), 70), (microseconds(last), 71)]

    push(client, (user, 73, at(4, second=1)))  # of a day to come, which will not hold it
    build_features(config, day=day_of(4))
    materialize_features(config, day=day_of(4), now=NOW)
    states = [(us, item) for item, us in world.sequence("story", user=user, before=at(5))]
    assert clicks_of(client, user) == [*states, (microseconds(later), 70), (microseconds(last), 71)]
    materialize_features(config, day=day_of(3), now=NOW)  # an older one changes nothing
    assert clicks_of(client, user) == [*states, (microseconds(later), 70), (microseconds(last), 71)]


def test_a_pushed_click_of_a_user_without_any_that_day_goes_when_the_day_is_online(
    world: World, config: Config
) -> None:
    build_features(config, day=day_of(3))
    build_features(config, day=day_of(4))
    materialize_features(config, day=day_of(3), now=NOW)
    client, user, stranger = opened(config), 3, 4_711
    before = [(us, item) for item, us in world.sequence("story", user=user, before=at(5))]
    assert before
    assert all(us < microseconds(at(4)) for us, _ in before)
    early, late = (microseconds(at(4, second=1)), 73), (microseconds(at(5)), 74)
    push(client, (user, 73, at(4, second=1)), (stranger, 73, at(4, second=1)))
    assert (clicks_of(client, user), clicks_of(client, stranger)) == ([*before, early], [early])
    materialize_features(config, day=day_of(4), now=NOW)
    assert (clicks_of(client, user), clicks_of(client, stranger)) == (before, [])
    push(client, (user, 73, at(4, second=1)), (stranger, 74, at(5)), (user, 74, at(5)))  # late, and of a day to come
    assert (clicks_of(client, user), clicks_of(client, stranger)) == ([*before, late], [late])
    answer = client.online([user, stranger], join_key="user_id", service="ranker_v1")
    assert answer["story_ids"] == [[*(item for _, item in before), 74], [74]]
    assert reconcile_sequences(config, day=day_of(4), repair=False).differences == []


def test_two_rows_of_a_user_in_one_batch_are_both_merged(config: Config) -> None:
    client, first_us = opened(config), microseconds(at(0))
    times = [at(0), at(0)]
    client._store.push(
        "story_clicks",
        pd.DataFrame(
            {
                "user_id": [1, 1],
                "story_ids": [[5], [6]],
                "story_clicked_us": [[first_us + 9], [first_us]],
                "event_timestamp": times,
                "known_at": times,
            }
        ),
    )
    assert clicks_of(client, 1) == [(first_us, 6), (first_us + 9, 5)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"story_ids": [5, 6]}, "as many items"),
        ({"story_ids": [0]}, "as many items"),
        ({"story_clicked_us": [1_772_000_000]}, "epoch microseconds"),  # seconds
        ({"story_clicked_us": [1_772_000_000_000_000_000]}, "epoch microseconds"),  # nanoseconds
        ({"story_ids": None}, "missing: story_ids"),
        ({"user_id": 0}, "id > 0"),
    ],
)
def test_a_row_that_cannot_be_is_refused_and_none_is_written(
    world: World, row: dict[str, object], message: str
) -> None:
    client = opened(world.config)
    whole = {"user_id": 1, "story_ids": [5], "story_clicked_us": [microseconds(at(0))], "event_timestamp": at(0)}
    rows = [whole | {"known_at": at(0)}, whole | {"known_at": at(0), "user_id": 2} | row]
    with pytest.raises(DataError, match=message):
        client._store.push("story_clicks", pd.DataFrame(rows))
    assert client.online_values(VIEW, [1, 2]) == [None, None]


def test_a_sequence_that_is_longer_than_the_view_keeps_is_refused(world: World) -> None:
    world.length = 40
    world.product_clicks[4] += [(3, 1 + number, at(4, second=number)) for number in range(30)]
    world.write(4)
    build_features(world.config, day=day_of(4))
    with pytest.raises(DataError, match=r"a sequence of \d+ clicks(.|\n)*20 at most"):
        materialize_features(world.config, day=day_of(4), now=NOW)


def test_an_emptied_store_is_filled_from_the_beginning(world: World, config: Config) -> None:
    for number in (3, 4):
        build_features(config, day=day_of(number))
        materialize_features(config, day=day_of(number), now=NOW)
    client = opened(config)
    served = client.online_sequences(range(12))
    client._online.drop(client._config, [VIEW])
    client._online.create(client._config, [VIEW])
    assert client.materialized_until(VIEW) is None
    materialize_features(config, day=day_of(4), now=NOW)
    for before, after in zip(served, client.online_sequences(range(12)), strict=True):
        np.testing.assert_array_equal(before.story_ids, after.story_ids)
    assert any(len(after.story_ids) for after in served)


def test_what_feasts_own_store_left_is_replaced(world: World) -> None:
    folder = world.folder / "work/feast"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "online.db")) as connection:
        connection.execute(f"CREATE TABLE storyrec_{VIEW} (entity_key BLOB, feature_name TEXT, value BLOB)")
    build_features(world.config, day=day_of(4))
    materialize_features(world.config, day=day_of(4), now=NOW)
    assert len(list(opened(world.config).online_ids(VIEW))) > 5


def test_feast_reads_the_values_with_their_event_time(config: Config) -> None:
    client = opened(config)
    push(client, (1, 5, at(0)), (1, 6, at(0, second=1)))
    answer = client._store.get_online_features(
        features=[f"{VIEW}:story_ids"], entity_rows=[{"user_id": 1}, {"user_id": 2}, {"user_id": 0}]
    )
    assert answer.to_dict()["story_ids"] == [[5, 6], None, None]
    times = answer.proto.results[answer.proto.metadata.feature_names.val[:].index("story_ids")].event_timestamps
    assert times[0].ToMicroseconds() // 1_000_000 == microseconds(at(0, second=1)) // 1_000_000


def test_redis_killed_in_the_middle_is_filled_again(world: World, redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.config.model_copy(update={"profile": "cluster"})
    build_features(config, day=day_of(4))
    from storyrec.features.redis_store import PackedRedisOnlineStore

    put, port, num_puts = PackedRedisOnlineStore.put, free_port(), 0
    monkeypatch.setenv("STORYREC_REDIS", f"127.0.0.1:{port}")
    with ExitStack() as servers:
        first = servers.enter_context(running_redis(port))

        def kill_once(*arguments: Any, **rule: Any) -> None:
            nonlocal num_puts
            put(*arguments, **rule)
            num_puts += 1
            if num_puts == 1:
                first.kill()
                first.wait()
                servers.enter_context(running_redis(port))

        client = opened(config)
        with monkeypatch.context() as patch:
            patch.setattr(PackedRedisOnlineStore, "put", kill_once)
            with pytest.raises(PlatformError, match="restarted while user_story_sequence"):
                client.materialize(VIEW, start=at(4), end=at(5))
        assert client.materialized_until(VIEW) is None
        client.materialize(VIEW, start=at(4), end=at(5))
        for user in range(1, 12):
            expected = [(us, item) for item, us in world.sequence("story", user=user, before=at(5))]
            assert clicks_of(client, user) == expected
