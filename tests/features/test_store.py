"""The feature store applied for real: SQLite and Redis serve, DuckDB retrieves, and both equal the slices."""

import contextlib
import json
import shutil
import sqlite3
import threading
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_world import MOMENT, NOW, World, at, day_of, microseconds

from storyrec.config import Config
from storyrec.errors import ConfigError, DataError, MissingPartition, PlatformError
from storyrec.features.build import build_features, compare_sequences, materialize_features
from storyrec.features.online_models import OnlineModels
from storyrec.features.packed import Row
from storyrec.features.store import FeatureStoreClient, UserSequences, open_feature_store

REPO = Path(__file__).parents[2] / "feature_repo"
STRANGER = 4_711
USERS = [*range(1, 13), STRANGER]


def opened(config: Config) -> FeatureStoreClient:
    return open_feature_store(config.locations.work, profile=config.profile)


def run_day(world: World, number: int, *, config: Config | None = None) -> None:
    config = config or world.config
    build_features(config, day=day_of(number))
    materialize_features(config, day=day_of(number), now=NOW)


def pairs(sequences: UserSequences, domain: str) -> list[tuple[int, int]]:
    items = sequences.story_ids if domain == "story" else sequences.product_ids
    times = sequences.story_clicked_us if domain == "story" else sequences.product_clicked_us
    return list(zip(items.tolist(), times.tolist(), strict=True))


def require_online(client: FeatureStoreClient, world: World, *, end_of: int) -> None:
    """What is served equals the slices at the end of a day."""
    end = at(end_of + 1)
    for user, served in zip(USERS, client.online_sequences(USERS), strict=True):
        for domain in ("story", "product"):
            assert pairs(served, domain) == world.sequence(domain, user=user, before=end), (user, domain)


def historical(client: FeatureStoreClient, rows: list[tuple[int, datetime]]) -> pd.DataFrame:
    entities = pd.DataFrame(rows, columns=["user_id", "event_timestamp"])
    return client.historical(entities, service="ranker_v1")


@pytest.fixture(params=["local", "cluster"])
def profile(request: pytest.FixtureRequest) -> str:
    """Both profiles; the cluster's with a real Redis."""
    if request.param == "cluster":
        request.getfixturevalue("redis")
    return str(request.param)


@pytest.fixture
def config(world: World, profile: str) -> Config:
    return world.config.model_copy(update={"profile": profile})


def test_online_equals_the_slices_after_every_day(world: World, config: Config) -> None:
    for number in (2, 3, 4):  # the first one brings a backlog
        run_day(world, number, config=config)
        require_online(opened(config), world, end_of=number)
    assert set(opened(config).freshness().values()) == {at(5), None}


def test_a_day_that_was_never_materialized_comes_with_the_next(world: World, config: Config) -> None:
    world.product_clicks[3].append((STRANGER, 8, at(3, second=5)))
    world.write(3)
    run_day(world, 2, config=config)
    for number in (3, 4):
        build_features(config, day=day_of(number))
    done = materialize_features(config, day=day_of(4), now=NOW)
    assert (done.start, done.end) == (at(3), at(5))
    require_online(opened(config), world, end_of=4)


def test_an_older_day_after_a_newer_one_changes_nothing(world: World, config: Config) -> None:
    for number in range(5):
        build_features(config, day=day_of(number))
    materialize_features(config, day=day_of(4), now=NOW)
    done = materialize_features(config, day=day_of(1), now=NOW)
    assert (done.start, done.end) == (at(1), at(5))
    require_online(opened(config), world, end_of=4)


def test_a_day_built_again_replaces_what_is_online(world: World, config: Config) -> None:
    for number in range(5):
        run_day(world, number, config=config)
    served_before = opened(config).online_sequences(USERS)
    # into the middle of everybody's last day: the newest click, and so the event time, stays
    last = [(user, 29, at(4, second=20_000)) for user in range(1, 12)]
    world.product_clicks[4] += last
    world.write(4)
    run_day(world, 4, config=config)
    require_online(opened(config), world, end_of=4)
    assert any(
        pairs(before, "product") != pairs(after, "product") and before.updated_us == after.updated_us
        for before, after in zip(served_before, opened(config).online_sequences(USERS), strict=True)
    )


def test_historical_equals_the_slices_row_by_row(world: World, config: Config) -> None:
    build_features(config, day=day_of(4))
    materialize_features(config, day=day_of(4), now=NOW)
    compared = compare_sequences(config, day=day_of(4), num_rows=1_000)
    assert compared.num_rows == len(world.impressions[4])
    assert compared.num_clicked == sum(clicked for *_, clicked in world.impressions[4])
    assert compared.num_clicks == sum(
        len(world.sequence(domain, user=user, before=when))
        for user, _, when, _ in world.impressions[4]
        for domain in ("story", "product")
    )


def test_rows_in_are_rows_out_in_order(world: World, config: Config) -> None:
    run_day(world, 4, config=config)
    rows = [(user, when) for user, _, when, _ in world.impressions[3]]
    rows += [(STRANGER, at(3)), rows[0], (1, at(-100)), rows[0]]
    found = historical(opened(config), rows)
    assert list(zip(found["user_id"], found["event_timestamp"], strict=True)) == rows
    for (user, when), items in zip(rows, found["product_ids"], strict=True):
        expected = [item for item, _ in world.sequence("product", user=user, before=when)]
        assert (items.tolist() if isinstance(items, np.ndarray) else []) == expected


def test_an_impression_never_sees_its_own_click_but_sees_the_moment_before(world: World) -> None:
    when = at(4, second=50_000)
    world.impressions[4] += [(70, 5, when, True), (70, 6, when - MOMENT, True), (70, 7, when - MOMENT, True)]
    world.write(4)
    run_day(world, 4)
    found = historical(opened(world.config), [(70, when), (70, when + MOMENT), (70, when - MOMENT)])
    assert [None if items is None else list(items) for items in found["story_ids"].replace({np.nan: None})] == [
        [6, 7],
        [6, 7, 5],
        None,
    ]


def test_a_restated_value_does_not_leak_into_the_past(world: World) -> None:
    run_day(world, 4)
    user, story, when = world.clicks("story")[-1]
    known = at(20)
    path = world.folder / f"work/features/user_story_sequence/dt={day_of(4)}/part-1.parquet"
    original = pq.read_table(path.with_name("part-0.parquet"))
    restated = {
        "user_id": [user],
        "story_ids": [[story, 999]],
        "story_clicked_us": [[microseconds(when)] * 2],
        "event_timestamp": [when + MOMENT],
        "known_at": [known],
    }
    pq.write_table(pa.table(restated, schema=original.schema), path)
    found = historical(opened(world.config), [(user, known - MOMENT), (user, known)])
    assert [999 in items for items in found["story_ids"]] == [False, True]


def test_compare_shows_the_first_row_that_differs(world: World) -> None:
    run_day(world, 4)
    path = world.folder / f"work/features/user_product_sequence/dt={day_of(4)}/part-0.parquet"
    table = pq.read_table(path)
    items = [[*row[:-1], 12_345] for row in table["product_ids"].to_pylist()]
    pq.write_table(table.set_column(1, "product_ids", pa.array(items, pa.list_(pa.int64()))), path)
    with pytest.raises(DataError, match=r"product_ids in the feature store: .*12345") as caught:
        compare_sequences(world.config, day=day_of(4), num_rows=1_000)
    assert "user 1," in str(caught.value)


def test_reads_go_on_while_a_day_is_materialized(world: World) -> None:
    run_day(world, 3)
    build_features(world.config, day=day_of(4))
    reader, writer, done = opened(world.config), opened(world.config), threading.Event()
    start, end = at(0), at(5)

    def write() -> None:
        try:
            for _ in range(5):
                writer.materialize("user_story_sequence", start=start, end=end)
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    num_reads = 0
    while not done.is_set():
        reader.freshness()  # takes the registry's newest state, in which the view is being materialized
        assert len(reader.online_sequences(USERS)) == len(USERS)
        num_reads += 1
    thread.join()
    assert num_reads > 3


def test_a_killed_materialization_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_day(world, 2)
    build_features(world.config, day=day_of(4))
    from storyrec.features.sqlite_store import PackedSqliteOnlineStore

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PackedSqliteOnlineStore, "put", killed)
        with pytest.raises(Killed):
            materialize_features(world.config, day=day_of(4), now=NOW)
    require_online(opened(world.config), world, end_of=2)
    materialize_features(world.config, day=day_of(4), now=NOW)
    require_online(opened(world.config), world, end_of=4)


def test_a_day_that_is_not_over_is_refused(world: World) -> None:
    build_features(world.config, day=day_of(4))
    with pytest.raises(DataError, match="not over"):
        materialize_features(world.config, day=day_of(4), now=at(5) - timedelta(seconds=1))
    assert not (world.folder / "work/feast").exists()


def test_a_day_that_is_not_built_is_refused(world: World) -> None:
    with pytest.raises(MissingPartition, match="build_features"):
        materialize_features(world.config, day=day_of(4), now=NOW)


def test_services_name_owner_tags_and_features(world: World) -> None:
    run_day(world, 4)
    user = world.clicks("story")[0][0]
    answer = opened(world.config).online([user], join_key="user_id", service="user_interest_v1")
    assert set(answer) == {"user_id", "story_ids", "product_ids"}
    from feast import FeatureStore

    store = FeatureStore(fs_yaml_file=world.folder / "work/feast/feature_store.yaml", repo_path=str(world.folder))
    services = store.list_feature_services()
    assert {service.name for service in services} == {
        "ranker_v1",
        "user_interest_v1",
        "story_embedding_v1",
        "product_embedding_v1",
        "stories_for_product_v1",
        "stories_for_story_v1",
        "story_embedding_v2",
        "product_embedding_v2",
        "stories_for_product_v2",
        "stories_for_story_v2",
    }
    for registered in (*services, *store.list_feature_views()):
        assert registered.owner == "storyrec"
        assert registered.tags
        assert registered.description


def test_feast_applies_the_repository_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from feast.cli.cli import cli

    monkeypatch.delenv("STORYREC_FEATURES", raising=False)
    monkeypatch.chdir(tmp_path)  # Feast changes it, pytest changes it back
    repo = tmp_path / "checkout/feature_repo"
    shutil.copytree(Path(__file__).parents[2] / "feature_repo", repo, ignore=shutil.ignore_patterns("__pycache__"))
    result = CliRunner().invoke(cli, ["-c", str(repo), "apply"])
    assert result.exit_code == 0, result.output
    tables = sqlite3.connect(tmp_path / "checkout/var/marketplace/work/feast/online.db").execute(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    )
    assert {f"storyrec_{view}" for view in ("user_story_sequence", "stories_for_product")} <= {n for (n,) in tables}


@pytest.mark.parametrize("damage", ["older", "no database"])
def test_a_registry_of_another_feast_is_one_clear_error_and_is_made_anew(world: World, damage: str) -> None:
    run_day(world, 0)
    registry = world.folder / "work/feast/registry.db"
    if damage == "older":
        with contextlib.closing(sqlite3.connect(registry)) as database:
            database.execute("ALTER TABLE feature_views DROP COLUMN feature_view_proto")
            database.commit()
    else:
        registry.write_bytes(b"no database" * 100)
    with pytest.raises(PlatformError, match=r"(?s)did not .*registry\.db.*made anew from the definitions"):
        opened(world.config)
    registry.unlink()
    require_online(opened(world.config), world, end_of=0)


def test_a_cluster_without_its_places_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORYREC_REDIS", raising=False)
    monkeypatch.delenv("STORYREC_FEAST_REGISTRY", raising=False)
    with pytest.raises(ConfigError, match="STORYREC_FEAST_REGISTRY, STORYREC_REDIS"):
        open_feature_store(str(world.folder / "work"), profile="cluster")


def test_a_missing_repository_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYREC_FEATURE_REPO", str(world.folder / "nowhere"))
    with pytest.raises(PlatformError, match="STORYREC_FEATURE_REPO"):
        opened(world.config)


def test_a_damaged_online_store_is_one_clear_error(world: World) -> None:
    build_features(world.config, day=day_of(4))
    (world.folder / "work/feast").mkdir()
    (world.folder / "work/feast/online.db").write_bytes(b"no database" * 100)
    with pytest.raises(PlatformError, match="not a database"):
        materialize_features(world.config, day=day_of(4), now=NOW)


@pytest.mark.slow  # the client tries for ten seconds
def test_an_online_store_that_is_down_is_one_clear_error(
    world: World, redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_features(world.config, day=day_of(4))
    monkeypatch.setenv("STORYREC_REDIS", "127.0.0.1:1")
    config = world.config.model_copy(update={"profile": "cluster"})
    with pytest.raises(PlatformError, match="online store does not answer: ConnectionError"):
        materialize_features(config, day=day_of(4), now=NOW)
    monkeypatch.setenv("STORYREC_REDIS", redis)
    materialize_features(config, day=day_of(4), now=NOW)
    require_online(opened(config), world, end_of=4)


def test_what_was_retired_leaves_the_registry_and_the_online_store(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_day(world, 4, config=config)
    before = opened(config)
    known = registered(before)
    repo = world.folder / "feature_repo"
    shutil.copytree(REPO, repo, ignore=shutil.ignore_patterns("__pycache__"))
    definitions, schemas = repo / "definitions.py", repo / "schemas.json"
    monkeypatch.setenv("STORYREC_FEATURE_REPO", str(repo))
    text = definitions.read_text()
    definitions.write_text(
        f"{text}\nimport copy\nold, old_by_model = copy.copy(story_embedding), copy.copy(story_embedding_by_model)\n"
        "old.name, old_by_model.name = 'old', 'old_by_model'\nold.batch_source = _source('old')\n"
        "old_v1 = _service('old_v1', [old], 'Nobody reads it.', consumer='nobody')\n"
    )
    client, retired = opened(config), ["old", "old_by_model", "old_v1"]
    with_old = {*known, *retired, "old_source"}
    assert registered(client) == with_old
    client._online.publish_models(client._config, OnlineModels("m", ("m",)), published_us=1)
    layouts = [client.layout("old"), client.layout("old_by_model").of_model("m")]
    for layout in layouts:
        row = layout.pack(Row(1, 1, tuple(b"1" for _ in layout.fields)))
        client._online.create(client._config, [layout.view])
        client._online.put(client._config, layout, {7: row})
        assert client._online.get(client._config, layout.view, [7]) == [row]

    definitions.write_text(text)
    assert registered(opened(config)) == with_old  # what is only forgotten is not taken away
    schemas.write_text(json.dumps(json.loads(schemas.read_text()) | {"retired": retired}))
    for _ in range(2):
        after = opened(config)
        assert registered(after) == known
        assert [after._online.get(after._config, layout.view, [7]) for layout in layouts] == [[None], [None]]
        require_online(after, world, end_of=4)


def registered(client: FeatureStoreClient) -> set[str]:
    """The views, services and sources that the registry knows."""
    store = client._store
    store.refresh_registry()
    views, services, sources = store.list_feature_views(), store.list_feature_services(), store.list_data_sources()
    return {one.name for one in [*views, *services, *sources]}
