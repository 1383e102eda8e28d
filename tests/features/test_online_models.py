"""Two models online side by side: one is pinned, the current one answers who pins none, one is retired."""

import fcntl
import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_world import NOW, World, at, day_of
from item_world import NUM_STORIES, PRODUCT_IDS, STORY_IDS, deploy, items
from online_world import opened

from storyrec.config import Config
from storyrec.errors import ConfigError, DataError, ModelError, PlatformError, SchemaMismatch
from storyrec.features.catalog import read_catalog
from storyrec.features.feast_rows import RowsRefused
from storyrec.features.join import join_labels
from storyrec.features.lookup import look_up
from storyrec.features.neighbours import INDEX, index_folder
from storyrec.features.online_models import LAYOUT, OnlineModels, pack_models, publish, retire, unpack_models
from storyrec.features.publish import publish_features, retire_model
from storyrec.features.repository import feature_repo
from storyrec.features.store import FeatureStoreClient
from storyrec.registry import rollback
from storyrec.schema import Domain
from storyrec.storage import FolderStorage

NEW_STORY = 999


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Publishing needs no logs."""
    return World(tmp_path)


@pytest.fixture(params=["local", "cluster"])
def config(request: pytest.FixtureRequest, world: World) -> Config:
    """Both profiles; the cluster's with a real Redis."""
    if request.param == "cluster":
        request.getfixturevalue("redis")
    return world.config.model_copy(update={"profile": request.param})


def publish_two(world: World, config: Config) -> tuple[str, str]:
    """A model, and a day later another one that knows a story more."""
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(config, day=day_of(0))
    second = deploy(world, day=day_of(1), seed=2, story_ids=np.append(STORY_IDS, NEW_STORY))
    publish_features(config, day=day_of(1))
    return first, second


def require_rows(client: FeatureStoreClient, world: World, *, model: str, version: str, seed: int) -> None:
    """What Feast and the fast path read of a model is what its bundle holds."""
    vectors_ND = items(world, seed, "story_vectors")[:NUM_STORIES]
    served = client.online(STORY_IDS.tolist(), join_key="story_id", service="story_embedding_v2", model=model)
    np.testing.assert_array_equal(np.array(served["embedding"], np.float32), vectors_ND)
    assert set(served["model_version"]) == {version}
    found = client.embeddings(STORY_IDS.tolist(), domain=Domain.STORY, model=model)
    np.testing.assert_array_equal(found.values_ND, vectors_ND)
    assert (found.version, found.known_N.all()) == (version, True)
    matched = client.online(PRODUCT_IDS.tolist(), join_key="product_id", service="stories_for_product_v2", model=model)
    assert set(matched["model_version"]) == {version}


def test_two_models_are_read_side_by_side_until_one_is_retired(world: World, config: Config) -> None:
    first, second = publish_two(world, config)
    client = opened(config)
    assert client.online_models() == (second, (first, second))
    for model, version, seed in ((first, first, 1), (second, second, 2), ("current", second, 2)):
        require_rows(client, world, model=model, version=version, seed=seed)
    both = client._store.get_online_features(
        features=client._store.get_feature_service("story_embedding_v2"),
        entity_rows=[{"story_id": 100, "model": model} for model in (first, second, "current")],
    ).to_dict()
    assert both["model_version"] == [first, second, second]
    assert both["embedding"][1] == both["embedding"][2] != both["embedding"][0]
    unknown = client.embeddings([NEW_STORY, 100, 0], domain=Domain.STORY, model=first)
    assert unknown.known_N.tolist() == [False, True, False]
    assert not unknown.values_ND[0].any()
    assert client.embeddings([NEW_STORY], domain=Domain.STORY).known_N.tolist() == [True]
    assert client.embeddings([7], domain=Domain.STORY).values_ND.shape == (1, 0)

    with pytest.raises(ModelError, match="in use"):
        retire_model(config, version=second)
    retire_model(config, version=first, even_if_read=True)
    assert client.online_models() == (second, (second,))
    with pytest.raises(ModelError, match=f"model {first} is not online\n  expected: one of {second}, or current"):
        client.embeddings([100], domain=Domain.STORY, model=first)
    with pytest.raises(ModelError, match=f"model {first} is not online"):
        client.online([100], join_key="story_id", service="story_embedding_v2", model=first)
    for model in (second, "current"):
        require_rows(client, world, model=model, version=second, seed=2)
    layout = client.layout("story_embedding_by_model").of_model(first)
    assert client._online.get(client._config, layout.view, [0, 100]) == [None, None]
    newest = client.online([100, NEW_STORY], join_key="story_id", service="story_embedding_v1")
    assert newest["model_version"] == [second, second]


def test_a_rollback_makes_the_earlier_model_current_and_both_stay(world: World) -> None:
    config = world.config
    first, second = publish_two(world, config)
    rollback(FolderStorage(world.folder / "registry"))
    publish_features(config, day=day_of(1))
    assert opened(config).online_models() == (first, (first, second))
    require_rows(opened(config), world, model="current", version=first, seed=1)
    with pytest.raises(ModelError, match="in use"):
        retire_model(config, version=first)


def test_a_model_that_is_read_is_not_retired(world: World, redis: str) -> None:
    config = world.config.model_copy(update={"profile": "cluster"})
    first, second = publish_two(world, config)
    client = opened(config)
    client.online([100], join_key="story_id", service="story_embedding_v2", model=first)
    with pytest.raises(ModelError, match=r"it was read 0:00:\d\d ago(.|\n)*nobody has read for 2 days"):
        retire_model(config, version=first)
    require_rows(client, world, model=first, version=first, seed=1)
    assert index_folder(world.folder / "work", first).is_dir()
    lock = world.folder / "work/feast/lock"
    seen = []

    def killed() -> None:
        with lock.open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody publishes before the index is gone
        seen.append(client.online_models().versions)
        raise RuntimeError("killed")

    with pytest.raises(PlatformError, match="killed"):
        client.retire_model(first, unread=timedelta(0), remove_index=killed)
    assert seen == [client.online_models().versions] == [(second,)]
    retire_model(config, version=first)  # goes on where it was killed
    assert not index_folder(world.folder / "work", first).exists()


def test_a_publication_does_not_bring_a_model_back_that_was_retired_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config
    first, second = publish_two(world, config)
    third = deploy(world, day=day_of(2), seed=3)
    publish_models = FeatureStoreClient.publish_models

    def after_it_waited(self: FeatureStoreClient, *arguments: Any, **others: Any) -> OnlineModels:
        retire_model(config, version=first)
        return publish_models(self, *arguments, **others)

    monkeypatch.setattr(FeatureStoreClient, "publish_models", after_it_waited)
    publish_features(config, day=day_of(2))
    assert opened(config).online_models() == (third, (second, third))


def test_a_model_without_its_index_is_retired(world: World) -> None:
    first, second = publish_two(world, world.config)
    shutil.rmtree(index_folder(world.folder / "work", first))
    retire_model(world.config, version=first)
    assert opened(world.config).online_models() == (second, (second,))
    with pytest.raises(ModelError, match=f"no index of model {first}"):
        retire_model(world.config, version=first)


def test_an_index_that_was_half_removed_is_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = publish_two(world, world.config)

    def killed(folder: Path) -> None:
        (folder / INDEX).unlink()
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(RuntimeError, match="killed"):
            retire_model(world.config, version=first)
    folder = index_folder(world.folder / "work", first).parent
    assert len(list(folder.iterdir())) == 2
    retire_model(world.config, version=first)
    assert [path.name for path in folder.iterdir()] == [second]


def test_nothing_is_current_before_the_whole_model_is_online(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.config
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(config, day=day_of(0))
    second = deploy(world, day=day_of(1), seed=2)
    store = type(opened(config)._online)
    put, num_puts = store.put, 0

    def killed(self: object, config: object, layout: object, *rest: object, **rule: object) -> None:
        nonlocal num_puts
        num_puts += f":{second}" in layout.view  # type: ignore[attr-defined]
        if num_puts == 4:
            raise RuntimeError("killed")
        put(self, config, layout, *rest, **rule)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", killed)
        with pytest.raises(PlatformError, match="killed"):
            publish_features(config, day=day_of(1))
    assert opened(config).online_models() == (first, (first,))
    require_rows(opened(config), world, model="current", version=first, seed=1)
    publish_features(config, day=day_of(1))
    require_rows(opened(config), world, model="current", version=second, seed=2)
    require_rows(opened(config), world, model=first, version=first, seed=1)


def test_a_store_that_was_emptied_is_filled_with_every_model(world: World, redis: str) -> None:
    config = world.config.model_copy(update={"profile": "cluster"})
    first, second = publish_two(world, config)
    client = opened(config)
    client._online.drop(client._config, [*client._layouts, LAYOUT.view])
    client._online.create(client._config, [*client._layouts, LAYOUT.view])
    with pytest.raises(ModelError, match="no model is online"):
        client.embeddings([100], domain=Domain.STORY)
    assert publish_features(config, day=day_of(2)).changed
    assert client.online_models() == (second, (first, second))
    require_rows(client, world, model=first, version=first, seed=1)
    require_rows(client, world, model="current", version=second, seed=2)
    assert not publish_features(config, day=day_of(3)).changed


def test_readers_meet_no_half_model_while_one_is_retired(world: World, config: Config) -> None:
    first, _ = publish_two(world, config)
    ids, done, answers = STORY_IDS.tolist(), threading.Event(), []

    def read() -> None:
        client = opened(config)
        while not done.is_set():
            try:
                answers.append(int(client.embeddings(ids, domain=Domain.STORY, model=first).known_N.sum()))
            except ModelError:
                answers.append(-1)

    thread = threading.Thread(target=read)
    thread.start()
    while not answers and thread.is_alive():
        pass
    retire_model(config, version=first, even_if_read=True)
    before = len(answers)
    while len(answers) < before + 2 and thread.is_alive():
        pass
    done.set()
    thread.join()
    assert set(answers) == {len(ids), -1}


def test_feast_writes_rows_of_models_that_are_online_alone(world: World) -> None:
    config = world.config
    first, second = publish_two(world, config)
    client = opened(config)
    rows = {
        "story_id": [100, 100],
        "model": [first, "0" * 16],
        "embedding": [[1.0] * 64, [2.0] * 64],
        "model_version": [first, "0" * 16],
        "event_timestamp": [at(9), at(9)],
        "known_at": [at(9), at(9)],
    }
    client._store.write_to_online_store("story_embedding_by_model", pd.DataFrame(rows))
    assert client.embeddings([100], domain=Domain.STORY, model=first).values_ND.tolist() == [[1.0] * 64]
    require_rows(client, world, model="current", version=second, seed=2)
    assert client._online.get(client._config, f"story_embedding_by_model:{'0' * 16}", [100]) == [None]


def test_rows_that_would_spoil_a_model_are_refused(world: World) -> None:
    _, second = publish_two(world, world.config)
    client = opened(world.config)
    rows = {"story_id": [100], "embedding": [[1.0] * 64], "model_version": [second]}
    times = {"event_timestamp": [at(9)], "known_at": [at(9)]}
    for other, message in (
        ({"embedding": [[1.0] * 63]}, "embedding of 63 numbers\n  expected: 64 of them"),
        ({"embedding": [[float("nan")] + [1.0] * 63]}, "all finite"),
        ({"event_timestamp": [datetime.now(UTC) + timedelta(hours=2)]}, "not in the future"),
    ):
        for view, key in (("story_embedding", {}), ("story_embedding_by_model", {"model": [second]})):
            with pytest.raises(RowsRefused, match=message):
                client._store.write_to_online_store(view, pd.DataFrame(rows | key | times | other))
    require_rows(client, world, model="current", version=second, seed=2)


def test_a_person_looks_a_model_up(world: World) -> None:
    first, second = publish_two(world, world.config)

    def versions(**asked: str | None) -> list[object]:
        asked = {"entity": "story", "key": "100", "service": None, "feature": "model_version"} | asked
        return [row.features[0][1] for row in look_up(world.config, now=NOW, **asked)]  # type: ignore[arg-type]

    assert versions() == [second] * 2  # the embedding and the stories beside it
    assert versions(model=first) == [first] * 2
    assert versions(model=first, service="story_embedding_v2") == [first]
    assert versions(service="story_embedding_v2") == [second]
    with pytest.raises(ModelError, match="model abc is not online"):
        versions(model="abc")
    for asked in ({"service": "story_embedding_v1"}, {"entity": "user"}):
        with pytest.raises(ConfigError, match="is not by model"):
            versions(model=first, **asked)


def join(world: World, models: list[object], *, kind: pa.DataType | None = None) -> list[object]:
    """The models that made the embeddings joined to labels of one story, one a label, at the end of the second day."""
    path, out = world.folder / "labels.parquet", world.folder / f"train-{len(models)}.parquet"
    times = pa.array([at(2)] * len(models), pa.timestamp("us", "UTC"))
    labels = {"story_id": pa.array([100] * len(models)), "model": pa.array(models, kind), "event_timestamp": times}
    pq.write_table(pa.table(labels), path)
    catalog = read_catalog(feature_repo(), features=world.folder / "work/features")
    join_labels(path, out, service="story_embedding_v2", catalog=catalog, now=NOW)
    return pq.read_table(out)["model_version"].to_pylist()


def test_training_sets_name_the_model_of_each_label(world: World) -> None:
    first, second = publish_two(world, world.config)
    retire_model(world.config, version=first)
    assert join(world, [first, second, "unknown"], kind=pa.large_string()) == [first, second, None]
    with pytest.raises(DataError, match="asks for the current model, the first one in row 1"):
        join(world, [first, "current"])
    with pytest.raises(DataError, match="asks for the current model, the first one in row 0"):
        join(world, ["current"])
    with pytest.raises(SchemaMismatch, match="the models are of type int64"):
        join(world, [7])


def test_of_racing_writers_every_model_is_kept_and_the_latest_is_current() -> None:
    def value(current: str, *versions: str, us: int = 0) -> bytes:
        return pack_models(OnlineModels(current, versions), published_us=us)

    stored = publish(LAYOUT, None, value("a", "a", us=5))
    stored = publish(LAYOUT, stored, value("b", "b", "c", us=5))
    assert unpack_models(stored) == ("b", ("a", "b", "c"))
    stored = publish(LAYOUT, stored, value("d", "d", us=4))
    assert unpack_models(stored) == ("b", ("a", "b", "c", "d"))
    stored = retire(LAYOUT, stored, value("", "a", "b"))
    assert unpack_models(stored) == ("b", ("b", "c", "d"))
    assert LAYOUT.times(stored) == (5, 5)
    assert unpack_models(retire(LAYOUT, None, value("", "a"))) == ("", ())


def test_what_an_earlier_release_published_comes_online_by_model(world: World) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    publish_features(world.config, day=day_of(0))
    marker = world.folder / f"work/features/published/dt={day_of(0)}.json"
    earlier = json.loads(marker.read_text())
    earlier["num_rows"] = {view: count for view, count in earlier["num_rows"].items() if "by_model" not in view}
    marker.write_text(json.dumps(earlier))
    client = opened(world.config)
    client._online.drop(client._config, [LAYOUT.view])
    assert publish_features(world.config, day=day_of(1)).changed
    assert client.online_models() == (version, (version,))
