"""What is online against the logs, and what a person sees of one key."""

import io
from datetime import timedelta

import pytest
from feature_world import NOW, World, at, day_of, microseconds
from online_world import VIEW, clicks_of, opened, push
from rich.console import Console

from storyrec.config import Config
from storyrec.errors import ConfigError, DataError, MissingPartition
from storyrec.features.build import build_features, materialize_features
from storyrec.features.lookup import look_up, print_found
from storyrec.features.merge import Recent, pack_sequence
from storyrec.features.packed import Row
from storyrec.features.reconcile import SequencesReconciled, print_differences, reconcile_sequences


@pytest.fixture(params=["local", "cluster"])
def config(request: pytest.FixtureRequest, world: World) -> Config:
    """Both stores, with four of five days online."""
    if request.param == "cluster":
        request.getfixturevalue("redis")
    config = world.config.model_copy(update={"profile": request.param})
    build_features(config, day=day_of(3))
    materialize_features(config, day=day_of(3), now=NOW)
    return config


def users(found: SequencesReconciled) -> list[tuple[str, int]]:
    return [(one.view, one.user_id) for one in found.differences]


def output(found: SequencesReconciled) -> str:
    text = io.StringIO()
    console = Console(file=text, highlight=False, markup=False, soft_wrap=True)
    if found.differences and not found.repaired:
        with pytest.raises(DataError, match=f"{len(found.differences)} online sequences differ"):
            print_differences(found, console=console)
    else:
        print_differences(found, console=console)
    return text.getvalue()


def test_nothing_differs_after_a_day_nor_after_fresh_clicks(config: Config) -> None:
    push(opened(config), (3, 90, at(4, second=1)), (4_711, 90, at(4)))
    found = reconcile_sequences(config, day=day_of(3), repair=False)
    assert found.differences == []
    assert found.num_users["user_product_sequence"] >= 10
    assert "0 differ" in output(found)


def test_what_differs_is_listed_and_rewritten_and_fresh_clicks_stay(world: World, config: Config) -> None:
    client = opened(config)
    layout, fresh = client.layout(VIEW), (microseconds(at(4, second=5)), 90)
    states = clicks_of(client, 3)
    wrong = {
        3: Recent(microseconds(at(4)), states[:-1]),  # a click is lost
        4_711: Recent(microseconds(at(4)), [(microseconds(at(2)), 8), fresh]),  # one that the logs never brought
    }
    packed = {user: pack_sequence(layout, sequence) for user, sequence in wrong.items()}
    client._online.drop(client._config, [VIEW])
    client._online.create(client._config, [VIEW])
    materialize_features(config, day=day_of(3), now=NOW)
    client._online.put(client._config, layout, packed, rule=lambda layout, stored, arriving: arriving)

    found = reconcile_sequences(config, day=day_of(3), repair=False)
    assert users(found) == [(VIEW, 3), (VIEW, 4_711)]
    assert found.differences[0].logs == states
    lines = output(found).splitlines()
    assert lines[0] == (
        f"{VIEW} user 3: {len(states) - 1} clicks online, {len(states)} in the logs; "
        f"click {len(states)} is none online, {states[-1][1]} at {world_time(states[-1][0])} in the logs"
    )
    assert "1 clicks online, 0 in the logs; click 1 is 8 at 2026-03-03 00:00:00.000000 online, none in" in lines[1]

    assert users(reconcile_sequences(config, day=day_of(3), repair=True)) == users(found)
    assert clicks_of(client, 3) == states
    assert clicks_of(client, 4_711) == [fresh]
    assert reconcile_sequences(config, day=day_of(3), repair=False).differences == []


def test_a_day_that_is_not_online_yet_differs_and_an_earlier_one_does_not(config: Config) -> None:
    build_features(config, day=day_of(4))
    assert reconcile_sequences(config, day=day_of(4), repair=False).differences
    materialize_features(config, day=day_of(4), now=NOW)
    for number in (3, 4):
        assert reconcile_sequences(config, day=day_of(number), repair=False).differences == []


def test_a_day_that_is_not_built_has_nothing_to_compare(world: World) -> None:
    with pytest.raises(MissingPartition, match="build_features"):
        reconcile_sequences(world.config, day=day_of(4), repair=False)


def shown(config: Config, entity: str, key: str, **asked: str) -> str:
    now = at(4, second=3_600 * 2)
    text = io.StringIO()
    found = look_up(config, entity=entity, key=key, service=asked.get("service"), feature=asked.get("feature"), now=now)
    print_found(found, now=now, console=Console(file=text, highlight=False, markup=False, soft_wrap=True))
    return text.getvalue()


def test_a_key_is_shown_with_its_times(world: World, config: Config) -> None:
    client = opened(config)
    push(client, (3, 90, at(4, second=60)))
    text = shown(config, "user", "3", service="user_interest_v1")
    items = [item for item, _ in world.sequence("story", user=3, before=at(4))]
    assert text.splitlines()[:2] == [
        f"{VIEW}: valid since 2026-03-05 00:01:00.000001 UTC, 1 h 58 min ago (complete until: 2026-03-05 00:00 UTC)",
        f"  story_ids: {[*items, 90]}",
    ]
    assert "clicked_us" not in text
    assert "clicked_us" in shown(config, "user", "3")
    assert "product" not in shown(config, "user", "3", feature="story_ids")
    assert f"{VIEW}: unknown (complete until: 2026-03-05 00:00 UTC)" in shown(config, "user", "4711")

    layout = client.layout("product_embedding")
    value = layout.pack(Row(microseconds(at(1)), 0, (b"\0\0\x80?", b"v7")))
    client._online.put(client._config, layout, {9: value})
    text = shown(config, "product", "9")
    assert "3 d 2 h ago (complete until: never materialized)\n  embedding: [1.0]\n  model_version: v7\n" in text
    assert "stories_for_product: unknown" in text
    assert "stale" not in text


def test_a_sequence_that_missed_its_days_is_called_stale(config: Config) -> None:
    now = at(4) + timedelta(days=2, seconds=1)
    text = io.StringIO()
    found = look_up(config, entity="user", key="3", service=None, feature=None, now=now)
    print_found(found, now=now, console=Console(file=text, highlight=False, markup=False, soft_wrap=True))
    assert "stale: run materialize-features for the days since 2026-03-05 00:00 UTC" in text.getvalue()
    assert not any(
        row.is_stale for row in look_up(config, entity="user", key="3", service=None, feature=None, now=at(5))
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("shop", "3", None, None), "no entity 'shop'(.|\n)*product, story, user"),
        (("user", "abc", None, None), "'abc' is no id"),
        (("user", "-3", None, None), "'-3' is no id"),
        (("user", "9223372036854775808", None, None), "is no id"),
        (("user", "3", "ranker_v9", None), "no service 'ranker_v9'(.|\n)*ranker_v1"),
        (("user", "3", "story_embedding_v1", None), "story_embedding_v1 is not of user"),
        (
            ("user", "3", "user_interest_v1", "story_clicked_us"),
            "no feature 'story_clicked_us'(.|\n)*story_ids, product_ids",
        ),
    ],
)
def test_what_is_asked_wrongly_is_named(
    world: World, asked: tuple[str, str, str | None, str | None], message: str
) -> None:
    entity, key, service, feature = asked
    with pytest.raises(ConfigError, match=message):
        look_up(world.config, entity=entity, key=key, service=service, feature=feature, now=NOW)


def world_time(us: int) -> str:
    return f"{at(0) + timedelta(microseconds=us - microseconds(at(0))):%Y-%m-%d %H:%M:%S.%f}"
