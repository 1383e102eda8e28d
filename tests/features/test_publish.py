"""The champion's items in the store: every row names its model, once a champion, never an older one later."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from feature_world import World, at, day_of

from storyrec.config import Config
from storyrec.errors import ModelError, StorageError
from storyrec.features.publish import VIEWS, publish_features
from storyrec.features.store import FeatureStoreClient, open_feature_store
from storyrec.manifest import seal_folder
from storyrec.registry import push_bundle, read_champion, rollback, switch_champion
from storyrec.storage import FolderStorage

NUM_STORIES, NUM_PRODUCTS = 30, 20
STORY_IDS, PRODUCT_IDS = np.arange(100, 100 + NUM_STORIES), np.arange(500, 500 + NUM_PRODUCTS)


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


def deploy(world: World, *, day: date, seed: int) -> str:
    """Push a bundle with an item table and make it the champion."""
    random = np.random.default_rng(seed)
    folder = world.folder / f"bundle-{seed}"
    (folder / "items").mkdir(parents=True)
    for domain, ids in (("story", STORY_IDS), ("product", PRODUCT_IDS)):
        np.save(folder / f"items/{domain}_ids.npy", np.concatenate([[0], ids]))
        for name, width in (("vectors", 64), ("match_vectors", 128)):
            np.save(folder / f"items/{domain}_{name}.npy", _padded(random.normal(size=(len(ids), width))))
    seal_folder(folder, day=day)
    registry = FolderStorage(world.folder / "registry")
    version = push_bundle(registry, folder)
    pointer = read_champion(registry)
    expected = pointer.champion.version if pointer else None
    switch_champion(registry, version=version, day=day, expected_version=expected)
    return version


def client(config: Config) -> FeatureStoreClient:
    return open_feature_store(config.locations.work, profile=config.profile)


def items(world: World, seed: int, name: str) -> np.ndarray:
    return np.load(world.folder / f"bundle-{seed}/items/{name}.npy")[1:]


def require_online(config: Config, world: World, *, version: str, seed: int) -> None:
    store = client(config)
    for domain, ids in (("story", STORY_IDS), ("product", PRODUCT_IDS)):
        served = store.online(ids.tolist(), join_key=f"{domain}_id", service=f"{domain}_embedding_v1")
        np.testing.assert_array_equal(
            np.array(served["embedding"], np.float32), items(world, seed, f"{domain}_vectors")
        )
        assert set(served["model_version"]) == {version}
    matched = store.online(PRODUCT_IDS.tolist(), join_key="product_id", service="stories_for_product_v1")
    assert set(matched["model_version"]) == {version}
    stories_ND, products_MD = items(world, seed, "story_match_vectors"), items(world, seed, "product_match_vectors")
    for row, product_D in enumerate(products_MD):
        distances_N = np.sqrt(((stories_ND - product_D) ** 2).sum(axis=1))
        nearest = np.argsort(distances_N)[: config.match.num_stories]
        assert matched["story_ids"][row] == STORY_IDS[nearest].tolist()
        np.testing.assert_allclose(matched["distances"][row], distances_N[nearest], rtol=1e-5)


def test_a_champion_is_published_offline_and_online(world: World, config: Config) -> None:
    version = deploy(world, day=day_of(0), seed=1)
    published = publish_features(config, day=day_of(0))
    assert (published.version, published.partition, published.changed) == (version, day_of(0), True)
    assert published.num_rows == {
        "story_embedding": NUM_STORIES,
        "product_embedding": NUM_PRODUCTS,
        "stories_for_product": NUM_PRODUCTS,
    }
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


def test_an_older_day_never_takes_a_newer_champion_back(world: World, config: Config) -> None:
    deploy(world, day=day_of(1), seed=1)
    publish_features(config, day=day_of(3))
    second = deploy(world, day=day_of(2), seed=2)
    published = publish_features(config, day=day_of(0))
    assert (published.day, published.partition) == (day_of(3), day_of(3))
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


def _padded(values_ND: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, values_ND.shape[1])), values_ND]).astype(np.float32)
