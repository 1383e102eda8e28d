"""Example recommendations: what a client of the registry and the feature store would get."""

import shutil
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pytest

from storyrec.bundle import Bundle
from storyrec.config import Config
from storyrec.errors import DataError, ModelError
from storyrec.examples import example_ids, match_product, rank_for_user
from storyrec.features.build import build_features, materialize_features
from storyrec.registry import push_bundle, switch_champion
from storyrec.serving.ranking import Clicks, rank
from storyrec.storage import FolderStorage
from trained import World


@pytest.fixture(scope="module")
def deployed(world: World, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a place where the packed bundle is deployed and the day's sequences are online."""
    root = tmp_path_factory.mktemp("deployed")
    shutil.copytree(world.config.locations.work, root / "work")
    locations = world.config.locations.model_copy(update={"work": str(root / "work"), "registry": str(root / "models")})
    config = world.config.model_copy(update={"locations": locations})
    registry = FolderStorage(root / "models")
    version = push_bundle(registry, packed)
    switch_champion(registry, version=version, day=world.data.day, expected_version=None)
    build_features(config, day=world.data.day)
    materialize_features(config, day=world.data.day)
    return config


def test_a_user_gets_the_best_of_the_newest_stories(deployed: Config, world: World, packed: Path) -> None:
    data, bundle = world.data, Bundle.load(packed)
    user_id, _ = example_ids(deployed)
    ranking = rank_for_user(deployed, user_id=user_id, top=3)

    clicks = {}
    for name, log in (("story", data.story_clicks), ("product", data.product_clicks)):
        own_C = np.flatnonzero(log.user_ids_C == user_id)[-data.sequence_length :]
        clicks[name] = Clicks(log.item_ids_C[own_C], log.clicked_us_C[own_C])
    midnight = datetime.combine(data.day + timedelta(days=1), time(), UTC)
    scores_N = rank(
        bundle,
        story_clicks=clicks["story"],
        product_clicks=clicks["product"],
        now_us=int(midnight.timestamp()) * 1_000_000,
        candidate_ids=data.stories.item_ids_N,
    )
    assert ranking.num_candidates == len(data.stories) - 1  # fewer than a page: all of them
    expected = np.sort(scores_N[1:])[::-1][:3]
    assert [story.value for story in ranking.stories] == pytest.approx(expected.tolist(), abs=1e-6)
    for story in ranking.stories:
        row = int(data.stories.rows(story.story_id))
        assert story.title == data.stories.titles[row]
        assert story.value == pytest.approx(scores_N[row], abs=1e-6)
    newest = int(np.asarray(clicks["product"].item_ids_C)[-1])
    assert ranking.product_clicks[0] == data.products.titles[int(data.products.rows(newest))]


def test_a_product_gets_the_nearest_stories(deployed: Config, world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    product_id = int(bundle.products.ids_N[5])
    matches = match_product(deployed, product_id=product_id, top=4)
    distances_N = np.linalg.norm(bundle.stories.match_NM[1:] - bundle.products.match_NM[5], axis=1)
    assert [story.value for story in matches.stories] == pytest.approx(np.sort(distances_N)[:4].tolist(), abs=1e-4)
    assert matches.stories[0].story_id == bundle.stories.ids_N[1:][np.argmin(distances_N)]
    assert matches.title == world.data.products.titles[5]


def test_a_product_that_the_model_does_not_know_is_named(deployed: Config) -> None:
    with pytest.raises(DataError, match="does not know product 123456789"):
        match_product(deployed, product_id=123456789, top=1)


def test_without_a_champion_there_is_nothing_to_recommend(deployed: Config, tmp_path: Path) -> None:
    locations = deployed.locations.model_copy(update={"registry": str(tmp_path)})
    with pytest.raises(ModelError, match="no model is deployed yet"):
        match_product(deployed.model_copy(update={"locations": locations}), product_id=1, top=1)
