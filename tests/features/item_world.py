"""Bundles of drawn item tables, deployed."""

from datetime import date

import numpy as np
from feature_world import World

from storyrec.manifest import seal_folder
from storyrec.registry import push_bundle, read_champion, switch_champion
from storyrec.storage import FolderStorage

NUM_STORIES, NUM_PRODUCTS = 30, 20
STORY_IDS, PRODUCT_IDS = np.arange(100, 100 + NUM_STORIES), np.arange(500, 500 + NUM_PRODUCTS)


def deploy(
    world: World,
    *,
    day: date,
    seed: int,
    story_ids: np.ndarray = STORY_IDS,
    product_ids: np.ndarray = PRODUCT_IDS,
    scale: float = 1.0,
    width: int = 64,
) -> str:
    """Push a bundle with an item table and make it the champion."""
    random = np.random.default_rng(seed)
    folder = world.folder / f"bundle-{seed}"
    (folder / "items").mkdir(parents=True)
    for domain, ids in (("story", story_ids), ("product", product_ids)):
        np.save(folder / f"items/{domain}_ids.npy", np.concatenate([[0], ids]))
        for name, num_values in (("vectors", width), ("match_vectors", 2 * width)):
            np.save(folder / f"items/{domain}_{name}.npy", _padded(scale * random.normal(size=(len(ids), num_values))))
    seal_folder(folder, day=day)
    registry = FolderStorage(world.folder / "registry")
    version = push_bundle(registry, folder)
    pointer = read_champion(registry)
    expected = pointer.champion.version if pointer else None
    switch_champion(registry, version=version, day=day, expected_version=expected)
    return version


def items(world: World, seed: int, name: str) -> np.ndarray:
    """An array of a bundle's item table, without the padding."""
    return np.load(world.folder / f"bundle-{seed}/items/{name}.npy")[1:]


def _padded(values_ND: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, values_ND.shape[1])), values_ND]).astype(np.float32)
