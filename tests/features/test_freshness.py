"""The freshness promises: kept and broken, in words, as an exit code and for Prometheus."""

import io
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from feature_world import NOW, World, at, day_of
from item_world import deploy
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from storyrec.errors import ConfigError, DataError
from storyrec.features.build import build_features, materialize_features
from storyrec.features.freshness import METRICS, Freshness, measure_freshness, print_freshness, require_kept
from storyrec.features.online_models import LAYOUT
from storyrec.features.publish import VIEWS as ITEM_VIEWS
from storyrec.features.publish import publish_features
from storyrec.features.repository import FEATURE_REPO
from storyrec.features.store import open_feature_store

SEQUENCES = ("user_product_sequence", "user_story_sequence")
HOUR = timedelta(hours=1)


def run_day(world: World, number: int) -> None:
    build_features(world.config, day=day_of(number))
    materialize_features(world.config, day=day_of(number), now=NOW)


def by_view(world: World, now: datetime) -> dict[str, Freshness]:
    return {view.view: view for view in measure_freshness(world.config, now=now)}


def metrics(world: World) -> dict[tuple[str, str], float]:
    text = (world.folder / "work" / METRICS).read_text()
    return {
        (sample.name, sample.labels["view"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_view_makes_a_promise(world: World) -> None:
    tags = open_feature_store(world.config.locations.work, profile="local").tags()
    assert tags.keys() == {*SEQUENCES, *ITEM_VIEWS}
    found = measure_freshness(world.config, now=NOW)
    assert {view.view for view in found} == tags.keys()
    screen = io.StringIO()
    print_freshness(found, console=Console(file=screen, width=80))
    assert {name for name in tags if f" {name} " in screen.getvalue()} == tags.keys()  # none is cut short


def test_a_promise_holds_to_the_hour(world: World) -> None:
    deploy(world, day=day_of(2), seed=1)
    run_day(world, 2)
    publish_features(world.config, day=day_of(2))
    found = by_view(world, at(3) + 30 * HOUR)
    for view in SEQUENCES:
        assert found[view] == Freshness(view, 30 * HOUR, at(3), 30 * HOUR)
    for view in ITEM_VIEWS:
        assert found[view] == Freshness(view, 36 * HOUR, at(3), 30 * HOUR)
    require_kept(list(found.values()))

    found = by_view(world, at(3) + 30 * HOUR + timedelta(seconds=1))
    assert {view.view for view in found.values() if not view.is_kept} == set(SEQUENCES)
    with pytest.raises(DataError, match=r"user_story_sequence is 30\.0 h old \(promised: 30 h\)") as caught:
        require_kept(list(found.values()))
    assert "embedding" not in str(caught.value)


def test_a_kept_champion_is_fresh_as_of_the_day_it_was_kept(world: World) -> None:
    deploy(world, day=day_of(1), seed=1)
    for number in (1, 2, 3):
        publish_features(world.config, day=day_of(number))
    found = by_view(world, at(5))
    assert found["story_embedding"].complete_until == at(4)
    assert found["story_embedding"].is_kept


def test_a_store_that_was_emptied_has_no_items_though_the_champion_was_published(world: World) -> None:
    deploy(world, day=day_of(2), seed=1)
    run_day(world, 2)
    publish_features(world.config, day=day_of(2))
    assert all(view.is_kept for view in by_view(world, at(3)).values())
    client = open_feature_store(world.config.locations.work, profile="local")
    client._online.drop(client._config, [*client._layouts, LAYOUT.view])
    found = by_view(world, at(3))
    assert {view.complete_until for view in found.values()} == {None}
    until = "storyrec_feature_complete_until_timestamp_seconds"
    assert not [view for name, view in metrics(world) if name == until]
    publish_features(world.config, day=day_of(2))
    assert {view for view, was in by_view(world, at(3)).items() if was.is_kept} == set(ITEM_VIEWS)


def test_nothing_online_breaks_every_promise(world: World) -> None:
    found = by_view(world, NOW)
    assert not any(view.is_kept for view in found.values())
    with pytest.raises(DataError, match="stories_for_story is not there"):
        require_kept(list(found.values()))
    assert ("storyrec_feature_complete_until_timestamp_seconds", "story_embedding") not in metrics(world)
    assert metrics(world)["storyrec_feature_promise_kept", "story_embedding"] == 0


def test_prometheus_reads_what_was_measured(world: World) -> None:
    run_day(world, 2)
    by_view(world, at(4))
    read = metrics(world)
    assert read["storyrec_feature_complete_until_timestamp_seconds", "user_story_sequence"] == at(3).timestamp()
    assert read["storyrec_feature_promised_age_seconds", "user_story_sequence"] == 30 * 3600
    assert read["storyrec_feature_promise_kept", "user_story_sequence"] == 1
    by_view(world, at(9))
    assert metrics(world)["storyrec_feature_promise_kept", "user_story_sequence"] == 0


def test_a_run_that_comes_late_is_judged_as_of_the_day_after(world: World) -> None:
    run_day(world, 2)
    for day, age, kept in ((2, 24, True), (3, 48, False)):
        found = measure_freshness(world.config, day=day_of(day), now=NOW)
        view = next(view for view in found if view.view == "user_story_sequence")
        assert (view.age, view.is_kept) == (age * HOUR, kept)
    on_time = measure_freshness(world.config, day=day_of(2), now=at(3) + 3 * HOUR)
    assert {view.age for view in on_time if view.view in SEQUENCES} == {3 * HOUR}


def test_a_promise_that_is_no_number_of_hours_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Path(__file__).parents[2] / "feature_repo"
    changed = tmp_path / "feature_repo"
    changed.mkdir()
    for path in repo.glob("*.*"):
        (changed / path.name).write_text(path.read_text().replace('"30h"', '"soon"'))
    monkeypatch.setenv(FEATURE_REPO, str(changed))
    with pytest.raises(ConfigError, match="the promised age of user_product_sequence is 'soon'"):
        measure_freshness(world.config, now=NOW)
    assert not (world.folder / "work" / METRICS).exists()
