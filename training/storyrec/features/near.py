"""The stories near a product, near a story, or near what a user clicked lately: a call, and its answer for a person.

Suffixes: C = clicks, K = stories found, D = width.
"""

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from storyrec.config import Config
from storyrec.errors import DataError, ModelError
from storyrec.features.neighbours import Int64s, StoryIndex, index_folder, nearest_to_clicks
from storyrec.features.partitions import work_folder
from storyrec.features.publish import newest_published
from storyrec.logs.partitions import read_titles
from storyrec.schema import Domain
from storyrec.storage import FolderStorage

KINDS = ("product", "story", "user")


@dataclass(frozen=True)
class Nearby:
    """The stories near something, nearest first.

    Attributes:
        kind, key: what they are near, such as "product" and its id.
        title: of the item; empty for a user, or where there is none.
        model_version: whose matching vectors were compared.
        recall: of the approximate search, as measured when its index was built; None after an exact one.
        story_ids, titles, distances: one entry a story; titles may be empty.
    """

    kind: str
    key: int
    title: str
    model_version: str
    recall: float | None
    story_ids: tuple[int, ...]
    titles: tuple[str, ...]
    distances: tuple[float, ...]


def find_nearby(
    config: Config, *, kind: str, key: int, top_k: int, exact: bool = False, version: str | None = None
) -> Nearby:
    """The published stories near a product, a story or a user, without the story itself and the user's clicks.

    Args:
        config: settings; locations.work and profile.
        kind: "product", "story" or "user".
        key: its id.
        top_k: how many stories.
        exact: compare all stories.
        version: of the model; the published champion's without it.

    Raises:
        DataError: the model does not know the id, or the user has no clicks online.
        ModelError: nothing is published, or not this version.
    """
    storage = FolderStorage(work_folder(config.locations.work))
    version = version or _published_version(storage)
    index = StoryIndex.load(index_folder(storage.folder, version), version=version)
    sequences = _sequences(config, kind, key)
    found = {domain: index.vectors(ids, domain=domain) for domain, ids in sequences.items()}
    clicks_CD = np.concatenate([vectors for vectors, _ in found.values()])
    if not len(clicks_CD):
        raise DataError(
            f"the user {key} has no clicks online that the model knows"
            if kind == "user"
            else f"the model does not know the {kind} {key}",
            expected="an id from before the model's day" if kind != "user" else "a user with recent clicks",
            where=f"the index of model {version}",
            remedy="name another id, or wait until the next model is published",
        )
    seen = sequences.get(Domain.STORY, np.empty(0, np.int64))
    rows_K, distances_K = nearest_to_clicks(index, clicks_CD, top_k=top_k + len(seen), exact=exact)
    ids_K = index.story_ids_N[rows_K]
    new_K = np.flatnonzero(~np.isin(ids_K, seen))[:top_k]
    story_ids = tuple(ids_K[new_K].tolist())
    titles = read_titles(storage, "stories", {*story_ids, key})
    own = {"story": titles, "product": read_titles(storage, "products", {key}), "user": {}}[kind]
    return Nearby(
        kind=kind,
        key=key,
        title=own.get(key, ""),
        model_version=version,
        recall=None
        if exact
        else min((share for by in index.info.recall.values() for share in by.values()), default=1.0),
        story_ids=story_ids,
        titles=tuple(titles.get(story_id, "") for story_id in story_ids),
        distances=tuple(distances_K[new_K].tolist()),
    )


def print_nearby(found: Nearby, *, console: Console) -> None:
    """Show the stories to a person."""
    how = "all stories compared" if found.recall is None else f"recall at least {found.recall:.1%}"
    of = f"{found.kind} {found.key}" + (f", {found.title}" if found.title else "")
    console.print(f"Stories near {of}; model {found.model_version}, {how}", soft_wrap=True)
    table = Table()
    table.add_column("story", justify="right")
    table.add_column("title")
    table.add_column("distance", justify="right")
    for story_id, title, distance in zip(found.story_ids, found.titles, found.distances, strict=True):
        table.add_row(str(story_id), title, f"{distance:.3f}")
    console.print(table)


def _published_version(storage: FolderStorage) -> str:
    published = newest_published(storage)
    if published is None:
        raise ModelError(
            "no model is published yet",
            expected="a published champion",
            where=f"{storage.url}/features/published",
            remedy="run publish_features for the day of a deployed model",
        )
    return published.version


def _sequences(config: Config, kind: str, key: int) -> dict[Domain, Int64s]:
    """What the stories shall be near: one item, or a user's clicks of both domains."""
    if kind == "user":
        from storyrec.features.store import open_feature_store

        (user,) = open_feature_store(config.locations.work, profile=config.profile).online_sequences([key])
        return {Domain.STORY: user.story_ids, Domain.PRODUCT: user.product_ids}
    if kind not in KINDS:
        raise DataError(f"'{kind}' is no kind", expected="one of " + ", ".join(KINDS), remedy="name one of these")
    return {Domain.STORY if kind == "story" else Domain.PRODUCT: np.array([key], np.int64)}
