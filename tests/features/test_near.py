"""Stories near an item or a user, as the published model and the online store have them."""

from io import StringIO

import numpy as np
import pytest
from feature_world import NOW, World, day_of
from item_world import deploy, items
from rich.console import Console

from builders import write_partition
from storyrec.errors import DataError, ModelError
from storyrec.features.build import build_features, materialize_features
from storyrec.features.near import find_nearby, print_nearby
from storyrec.features.publish import publish_features

STORY_IDS, PRODUCT_IDS = np.arange(1, 41), np.arange(1, 21)  # clicks are of items 1 to 29


@pytest.fixture
def version(world: World) -> str:
    """Four days of clicks online, and a published model."""
    build_features(world.config, day=day_of(4))
    materialize_features(world.config, day=day_of(4), now=NOW)
    version = deploy(world, day=day_of(4), seed=1, story_ids=STORY_IDS, product_ids=PRODUCT_IDS)
    publish_features(world.config, day=day_of(4))
    return version


def distances_to(world: World, domain: str, ids: list[int]) -> np.ndarray:
    """[C, N] from items to all stories."""
    known = {"story": STORY_IDS, "product": PRODUCT_IDS}[domain]
    vectors = items(world, 1, f"{domain}_match_vectors")[np.searchsorted(known, ids)]
    return np.sqrt(((vectors[:, None] - items(world, 1, "story_match_vectors")) ** 2).sum(axis=2))


@pytest.mark.parametrize(("kind", "key"), [("product", 7), ("story", 9)])
@pytest.mark.parametrize("exact", [False, True])
def test_the_stories_near_an_item(world: World, version: str, kind: str, key: int, exact: bool) -> None:
    found = find_nearby(world.config, kind=kind, key=key, top_k=6, exact=exact)
    (distances_N,) = distances_to(world, kind, [key])
    if kind == "story":
        distances_N[key - 1] = np.inf
    nearest = np.argsort(distances_N)[:6]
    assert found.story_ids == tuple(STORY_IDS[nearest].tolist())
    np.testing.assert_allclose(found.distances, distances_N[nearest], rtol=1e-4)
    assert (found.model_version, found.recall) == (version, None if exact else 1.0)


def test_the_stories_near_a_users_clicks_are_new_to_the_user(world: World, version: str) -> None:
    user = 5
    end = world.impressions[4][0][2].replace(year=2027)
    story_ids = [item for item, _ in world.sequence("story", user=user, before=end)]
    product_ids = [item for item, _ in world.sequence("product", user=user, before=end)]
    assert len(story_ids) > 1
    known = [item for item in product_ids if item in PRODUCT_IDS]
    distances_CN = np.concatenate([distances_to(world, "story", story_ids), distances_to(world, "product", known)])
    expected_N = -np.log(np.exp(-distances_CN).mean(axis=0))
    expected_N[np.array(story_ids) - 1] = np.inf
    num_new = len(STORY_IDS) - len(set(story_ids))
    found = find_nearby(world.config, kind="user", key=user, top_k=len(STORY_IDS))
    assert found.story_ids == tuple(STORY_IDS[np.argsort(expected_N)[:num_new]].tolist())
    np.testing.assert_allclose(found.distances, np.sort(expected_N)[:num_new], rtol=1e-4)


def test_an_earlier_model_can_be_asked_until_it_is_gone(world: World, version: str) -> None:
    before = find_nearby(world.config, kind="product", key=7, top_k=5)
    second = deploy(world, day=day_of(5), seed=2, story_ids=STORY_IDS, product_ids=PRODUCT_IDS)
    publish_features(world.config, day=day_of(5))
    assert find_nearby(world.config, kind="product", key=7, top_k=5, version=version) == before
    newest = find_nearby(world.config, kind="product", key=7, top_k=5)
    assert newest.model_version == second
    assert newest.story_ids != before.story_ids


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        ("product", 999, "does not know the product 999"),
        ("story", 999, "does not know the story 999"),
        ("user", 4_711, "user 4711 has no clicks online"),
        ("shop", 1, "'shop' is no kind"),
    ],
)
def test_what_is_unknown_is_said(world: World, version: str, kind: str, key: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_nearby(world.config, kind=kind, key=key, top_k=5)


def test_a_version_that_was_never_published_is_refused(world: World, version: str) -> None:
    with pytest.raises(ModelError, match=f"no index of model {'0' * 16}\n  expected: one of {version}"):
        find_nearby(world.config, kind="product", key=7, top_k=5, version="0" * 16)


def test_nothing_published_is_said(world: World) -> None:
    with pytest.raises(ModelError, match="no model is published yet"):
        find_nearby(world.config, kind="product", key=7, top_k=5)


def test_the_answer_names_titles_model_and_recall(world: World, version: str) -> None:
    found = find_nearby(world.config, kind="product", key=7, top_k=2)
    titles = {found.story_ids[0]: "linen shirts", 7: "a story of the product's number"}
    stories = [
        {"story_id": key, "title": title, "source": "ugv", "published_at": NOW, "mounted_product_ids": []}
        for key, title in titles.items()
    ]
    product = {"product_id": 7, "title": "a shirt", "category_id": 1, "published_at": NOW}
    write_partition(world.folder / "work", "stories", day_of(4), stories)
    write_partition(world.folder / "work", "products", day_of(4), [product])
    written = StringIO()
    found = find_nearby(world.config, kind="product", key=7, top_k=2)
    print_nearby(found, console=Console(file=written, width=200, highlight=False))
    head, *_, first, _, _ = written.getvalue().splitlines()
    assert head.strip() == f"Stories near product 7, a shirt; model {version}, recall at least 100.0%"
    assert f"{found.story_ids[0]} │ linen shirts" in first
    assert f"{found.distances[0]:.3f}" in first
