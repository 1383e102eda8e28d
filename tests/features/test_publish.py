"""The champion's items in the store: every row names its model, once a champion, never an older one later."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from feature_world import World, at, day_of
from item_world import NUM_PRODUCTS, NUM_STORIES, PRODUCT_IDS, STORY_IDS, deploy, items

from storyrec.config import Config
from storyrec.errors import ModelError, StorageError
from storyrec.features import publish
from storyrec.features.neighbours import StoryIndex, build_index, index_folder
from storyrec.features.publish import VIEWS, follow_champion, item_tables, publish_features, retire_model
from storyrec.features.store import FeatureStoreClient, open_feature_store
from storyrec.registry import rollback
from storyrec.storage import FolderStorage


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


def client(config: Config) -> FeatureStoreClient:
    return open_feature_store(config.locations.work, profile=config.profile)


def require_online(config: Config, world: World, *, version: str, seed: int) -> None:
    store = client(config)
    for domain, ids in (("story", STORY_IDS), ("product", PRODUCT_IDS)):
        served = store.online(ids.tolist(), join_key=f"{domain}_id", service=f"{domain}_embedding_v1")
        np.testing.assert_array_equal(
            np.array(served["embedding"], np.float32), items(world, seed, f"{domain}_vectors")
        )
        assert set(served["model_version"]) == {version}
    stories_ND = items(world, seed, "story_match_vectors")
    for domain, ids in (("story", STORY_IDS), ("product", PRODUCT_IDS)):
        matched = store.online(ids.tolist(), join_key=f"{domain}_id", service=f"stories_for_{domain}_v1")
        assert set(matched["model_version"]) == {version}
        for row, vector_D in enumerate(items(world, seed, f"{domain}_match_vectors")):
            distances_N = np.sqrt(((stories_ND - vector_D) ** 2).sum(axis=1))
            if domain == "story":
                distances_N[row] = np.inf
            nearest = np.argsort(distances_N)[: config.match.num_stories]
            assert matched["story_ids"][row] == STORY_IDS[nearest].tolist()
            np.testing.assert_allclose(matched["distances"][row], distances_N[nearest], rtol=1e-5)


def test_a_champion_is_published_offline_and_online(world: World, config: Config) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    published = publish_features(config, day=day_of(0))
    assert (published.version, published.partition, published.changed) == (version, day_of(0), True)
    num_rows = {
        "story_embedding": NUM_STORIES,
        "product_embedding": NUM_PRODUCTS,
        "stories_for_product": NUM_PRODUCTS,
        "stories_for_story": NUM_STORIES,
    }
    assert published.num_rows == num_rows | {f"{view}_by_model": count for view, count in num_rows.items()}
    assert published.recall == {"stories_for_product": 1.0, "stories_for_story": 1.0}
    require_online(config, world, version=version, seed=1)
    for view in VIEWS:
        rows = ds.dataset(world.folder / "work/features" / view, format="parquet").to_table().to_pydict()
        assert set(rows["model_version"]) == {version}
        assert set(rows["event_timestamp"]) == set(rows["known_at"]) == {at(1)}


def test_the_next_champion_replaces_it_and_a_rollback_brings_it_back(world: World, config: Config) -> None:
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(config, day=day_of(0))
    second = deploy(world, day=day_of(1), seed=2)
    publish_features(config, day=day_of(1))
    require_online(config, world, version=second, seed=2)
    rollback(FolderStorage(world.folder / "registry"))
    again = publish_features(config, day=day_of(1))  # on the same day, so at the same event time
    assert (again.version, again.changed) == (first, True)
    require_online(config, world, version=first, seed=1)


def test_the_same_champion_is_published_once(world: World) -> None:
    config = world.config
    version = deploy(world, day=day_of(0), seed=1)
    publish_features(config, day=day_of(0))
    paths = list((world.folder / "work/features").rglob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    for number in (0, 1):
        published = publish_features(config, day=day_of(number))
        assert (published.version, published.partition, published.changed) == (version, day_of(0), False)
    after = {path: path.stat().st_mtime_ns for path in (world.folder / "work/features").rglob("*.parquet")}
    assert after == before
    marker = json.loads((world.folder / f"work/features/published/dt={day_of(1)}.json").read_text())
    assert (marker["version"], marker["partition"]) == (version, str(day_of(0)))


def test_a_model_of_another_width_is_refused_before_anything_is_written(world: World, config: Config) -> None:
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(config, day=day_of(0))
    before = all_files(world.folder / "work/features")
    wide = deploy(world, day=day_of(1), seed=2, width=128)
    with pytest.raises(ModelError, match=f"story vectors of model {wide} have 128 numbers\n.*expected: 64"):
        publish_features(config, day=day_of(1))
    assert all_files(world.folder / "work/features") == before
    require_online(config, world, version=first, seed=1)
    assert client(config).online_models() == (first, (first,))


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_older_day_never_takes_a_newer_champion_back(world: World, config: Config) -> None:
    deploy(world, day=day_of(1), seed=1)
    publish_features(config, day=day_of(3))
    second = deploy(world, day=day_of(2), seed=2)
    published = publish_features(config, day=day_of(0))
    assert (published.day, published.partition) == (day_of(3), day_of(3))
    require_online(config, world, version=second, seed=2)


def test_a_champion_promoted_between_two_days_is_followed(world: World, config: Config) -> None:
    deploy(world, day=day_of(0), seed=1)
    assert follow_champion(config) is None  # the day's own run comes first
    publish_features(config, day=day_of(2))
    second = deploy(world, day=day_of(1), seed=2)
    for changed in (True, False):
        followed = follow_champion(config)
        assert followed is not None
        assert (followed.version, followed.day, followed.changed) == (second, day_of(2), changed)
        require_online(config, world, version=second, seed=2)


def test_a_killed_publication_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(world.config, day=day_of(0))
    second = deploy(world, day=day_of(1), seed=2)

    def killed(*_: object, **__: object) -> None:
        raise StorageError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStoreClient, "materialize", killed)
        with pytest.raises(StorageError, match="killed"):
            publish_features(world.config, day=day_of(1))
    require_online(world.config, world, version=first, seed=1)
    assert publish_features(world.config, day=day_of(1)).changed
    require_online(world.config, world, version=second, seed=2)


def test_nothing_deployed_is_said_and_no_error(world: World) -> None:
    published = publish_features(world.config, day=day_of(0))
    assert (published.version, published.partition, published.changed) == ("", None, False)
    assert not list((world.folder / "work/features").rglob("*.parquet"))
    version = deploy(world, day=day_of(1), seed=1)
    assert publish_features(world.config, day=day_of(0)).version == version


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bundle_publishes_nothing(world: World, damage: str) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    path = world.folder / f"registry/bundles/{version}/items/story_vectors.npy"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    else:
        path.unlink()
    with pytest.raises(ModelError, match="story_vectors"):
        publish_features(world.config, day=day_of(0))
    assert not (world.folder / "work").exists()


def test_beyond_what_an_exact_search_can_do_the_index_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_EXACT_DISTANCES", 0)
    version = deploy(world, day=day_of(0), seed=1)
    published = publish_features(world.config, day=day_of(0))
    # 30 stories are one cell, so the index is exact; its recall is measured all the same
    assert published.recall == {"stories_for_product": 1.0, "stories_for_story": 1.0}
    require_online(world.config, world, version=version, seed=1)


def test_a_story_is_never_its_own_neighbour_even_among_copies(world: World) -> None:
    copies = 1 + world.config.match.num_stories + 5  # of the first story: more than are kept
    random = np.random.default_rng(0)
    stories_ND = random.normal(size=(40, 8)).astype(np.float32)
    stories_ND[:copies] = stories_ND[0]
    nothing = np.zeros((1, 8), np.float32)
    table = {
        "story_ids": np.arange(41),
        "product_ids": np.arange(2),
        **{f"story_{name}vectors": np.concatenate([nothing, stories_ND]) for name in ("", "match_")},
        **{f"product_{name}vectors": np.ones((2, 8), np.float32) for name in ("", "match_")},
    }
    index = build_index(table, version="0" * 16, folder=world.folder / "index")
    tables, _ = item_tables(table, index=index, top_k=10, day=day_of(0))
    for row in tables["stories_for_story"].to_pylist():
        assert row["story_id"] not in row["story_ids"]
        assert len(set(row["story_ids"])) == 10
        if row["story_id"] <= copies:
            assert row["distances"] == [0.0] * 10


def test_what_an_earlier_release_published_is_published_again(world: World) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    publish_features(world.config, day=day_of(0))
    marker = world.folder / f"work/features/published/dt={day_of(0)}.json"
    earlier = json.loads(marker.read_text())
    del earlier["recall"], earlier["num_rows"]["stories_for_story"]
    marker.write_text(json.dumps(earlier))
    assert publish_features(world.config, day=day_of(0)).changed
    require_online(world.config, world, version=version, seed=1)


def test_a_lost_index_is_built_again(world: World) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    publish_features(world.config, day=day_of(0))
    folder = index_folder(world.folder / "work", version)
    shutil.rmtree(folder)
    assert publish_features(world.config, day=day_of(0)).changed
    assert StoryIndex.load(folder, version=version).story_ids_N.tolist() == STORY_IDS.tolist()


def test_two_models_are_indexed_side_by_side_until_one_is_retired(world: World) -> None:
    first = deploy(world, day=day_of(0), seed=1)
    publish_features(world.config, day=day_of(0))
    second = deploy(world, day=day_of(1), seed=2)
    for version in (first, second):  # the one that is published still, and the champion
        with pytest.raises(ModelError, match="in use"):
            retire_model(world.config, version=version)
    publish_features(world.config, day=day_of(1))
    for version in (first, second):
        StoryIndex.load(index_folder(world.folder / "work", version), version=version)

    retire_model(world.config, version=first)
    assert [path.name for path in (world.folder / "work/features/neighbours").iterdir()] == [second]
    with pytest.raises(ModelError, match=f"no index of model {first}\n  expected: one of {second}"):
        retire_model(world.config, version=first)
    with pytest.raises(ModelError, match="in use"):
        retire_model(world.config, version=second)
    require_online(world.config, world, version=second, seed=2)
