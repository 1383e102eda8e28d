"""Step `publish_features`: the champion's item embeddings, and the stories near products and stories, for other teams.

Every row names the model that made it. What is published depends on the champion alone: a day
whose champion is published already writes a marker and nothing else.

Below locations.work:
    features/{story_embedding,product_embedding,stories_for_product,stories_for_story}/dt=D/part-0.parquet
    features/{the same}_by_model/dt=D/part-0.parquet    the same rows, for readers of more models than one
    features/neighbours/<version>/    the index of the stories, one a model that is not retired: neighbours.py
    features/published/dt=D.json      the marker, written last, when everything is online
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.config import Config
from storyrec.errors import ModelError
from storyrec.features.events import EVENT_TIME, KNOWN_TIME
from storyrec.features.neighbours import StoryIndex, build_index, index_folder, indexed_versions, spread
from storyrec.features.partitions import midnight, work_folder, write_rows
from storyrec.manifest import MANIFEST, Manifest
from storyrec.match import nearest_stories
from storyrec.progress import track
from storyrec.registry import BUNDLES, open_registry, read_champion
from storyrec.schema import TIMESTAMP
from storyrec.storage import FolderStorage, Storage

if TYPE_CHECKING:
    from storyrec.features.store import FeatureStoreClient

EMBEDDINGS = ("story_embedding", "product_embedding")
MATCHES = ("stories_for_product", "stories_for_story")
NEWEST = (*EMBEDDINGS, *MATCHES)
BY_MODEL = tuple(f"{view}_by_model" for view in NEWEST)
VIEWS = (*NEWEST, *BY_MODEL)
UNREAD = timedelta(days=2)  # a reader that comes once a day is not missed
ARRAYS = (
    "story_ids",
    "story_vectors",
    "story_match_vectors",
    "product_ids",
    "product_vectors",
    "product_match_vectors",
)
PUBLISHED = "features/published/dt="
MAX_EXACT_DISTANCES = 20_000_000_000  # some ten minutes of one core; beyond, the index answers

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeaturesPublished:
    """What is published after a run of `publish_features`.

    Attributes:
        day: the day asked for.
        version: of the champion; empty while nothing is deployed.
        partition: the day whose partitions hold its rows; None while nothing is deployed.
        num_stories: stories per product and per story, a setting.
        num_rows: rows by view.
        recall: by view of matches, the share of the exact nearest stories in its rows: 1 after an exact search,
            else measured on some of its queries.
        changed: whether this run published them, or an earlier one had.
    """

    day: date
    version: str
    partition: date | None
    num_stories: int
    num_rows: dict[str, int]
    recall: dict[str, float]
    changed: bool


def publish_features(config: Config, *, day: date) -> FeaturesPublished:
    """Publish the items of the deployed champion, offline and online.

    A champion is published once; the same champion gives the same rows. Going back to an earlier
    champion publishes that one again. What is online never grows older: where a later day has
    published already, this run's rows take that day's place in time. The models before stay online
    beside the champion until they are retired.

    Args:
        config: settings; locations, profile and match.num_stories.
        day: partition key of the run that asks for it.

    Raises:
        ModelError: the champion's bundle is damaged, or its vectors have another width than the views promise;
            nothing is written.
        PlatformError: the feature store does not answer.
    """
    storage = FolderStorage(work_folder(config.locations.work))
    registry = open_registry(config.locations)
    num_stories = config.match.num_stories
    pointer = read_champion(registry)
    if pointer is None:
        return _finish(storage, FeaturesPublished(day, "", None, num_stories, dict.fromkeys(VIEWS, 0), {}, False))
    version = pointer.champion.version
    newest = newest_published(storage)
    folder = index_folder(storage.folder, version)
    wanted = (version, num_stories, set(VIEWS))
    is_marked = newest and (newest.version, newest.num_stories, set(newest.num_rows)) == wanted and folder.is_dir()
    if newest and is_marked and _store(config).online_models().current == version:
        same = replace(newest, day=day, changed=False)
        return _finish(storage, same) if day > newest.day else same

    partition = max(day, newest.day) if newest else day
    items, store = _read_items(registry, version), _store(config)
    _require_widths(items, store, version=version)
    with track("publish_features", total=3 + len(VIEWS) + len(NEWEST)) as tracker:
        try:
            index = StoryIndex.load(folder, version=version)  # of a killed run, or from before a rollback
        except ModelError:
            index = build_index(items, version=version, folder=folder)
        tracker.advance(note=f"{index.info.num_stories} stories indexed")
        tables, recall = item_tables(items, index=index, top_k=num_stories, day=partition)
        tracker.advance(note="stories and products matched")
        for view, rows in tables.items():
            write_rows(storage, view, partition, rows)
            tracker.advance(note=view)
        for view in NEWEST:
            store.materialize(view, start=midnight(partition), end=known_at(partition))
            tracker.advance(note=f"{len(tables[view])} rows of {view} online")
        models = store.publish_models(version, others=lambda: indexed_versions(folder.parent), end=known_at(partition))
        tracker.advance(note=f"models online: {', '.join(models.versions)}")
    num_rows = {view: rows.num_rows for view, rows in tables.items()}
    return _finish(storage, FeaturesPublished(partition, version, partition, num_stories, num_rows, recall, True))


def follow_champion(config: Config) -> FeaturesPublished | None:
    """Publish a champion that was promoted or rolled back between two days' runs, as of the newest published day.

    Returns:
        What is published; None: no day is.
    """
    newest = newest_published(FolderStorage(work_folder(config.locations.work)))
    return publish_features(config, day=newest.day) if newest else None


def retire_model(config: Config, *, version: str, even_if_read: bool = False) -> None:
    """Take the items of a model offline and remove its index; those who ask for it are told.

    Its partitions stay, for training sets; in the views by item alone, so do its rows of items that no
    later model knew. Killed midway, it is repeated: a model that is online goes though its index is gone.

    Args:
        config: settings; locations, profile.
        version: published before, and neither published now nor the champion.
        even_if_read: also where somebody has read its items within UNREAD; SQLite does not know.

    Raises:
        ModelError: it is in use, or neither online nor indexed; nothing is changed.
        PlatformError: the feature store does not answer.
    """
    storage = FolderStorage(work_folder(config.locations.work))
    registry = open_registry(config.locations)
    pointer, published = read_champion(registry), newest_published(storage)
    if version in {pointer and pointer.champion.version, published and published.version}:
        raise ModelError(
            f"model {version} is in use",
            expected="a model that is neither the champion nor the published one",
            where=storage.url,
            remedy="deploy and publish another model first",
        )
    folder, store = index_folder(storage.folder, version), _store(config)
    retired = folder.parent / f".{version}.retired"
    if version not in store.online_models().versions and not retired.is_dir():
        StoryIndex.load(folder, version=version)

    def remove_index() -> None:
        if folder.is_dir():
            folder.rename(retired)  # at once, for those who ask meanwhile

    store.retire_model(version, unread=timedelta(0) if even_if_read else UNREAD, remove_index=remove_index)
    if retired.is_dir():
        shutil.rmtree(retired)


def item_tables(
    items: Mapping[str, Array], *, index: StoryIndex, top_k: int, day: date
) -> tuple[dict[str, pa.Table], dict[str, float]]:
    """The rows of the item views, and the recall of those of matches.

    Args:
        items: the arrays of a bundle's item table; row 0 is padding.
        index: of its stories.
        top_k: stories per product and per story; a story is none of its own.
        day: the rows' partition; they are valid and known from its end on.
    """
    story_ids, product_ids = items["story_ids"][1:], items["product_ids"][1:]
    stories_ND, products_MD = (items[f"{name}_match_vectors"][1:].astype(np.float32) for name in ("story", "product"))
    is_exact = (len(stories_ND) + len(products_MD)) * len(stories_ND) <= MAX_EXACT_DISTANCES

    def nearest(queries: Floats, top_k: int) -> tuple[Int64s, Floats]:
        return nearest_stories(queries, stories_ND, top_k=top_k) if is_exact else index.search(queries, top_k=top_k)

    def table(name: str, ids: Array, columns: Mapping[str, pa.Array]) -> pa.Table:
        versions = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int8), [index.info.version]).cast(pa.string())
        time = pa.array(np.full(len(ids), known_at(day).timestamp() * 1e6, np.int64)).cast(TIMESTAMP)
        times = {EVENT_TIME: time, KNOWN_TIME: time}
        return pa.table({name: pa.array(ids), **columns, "model_version": versions, **times})

    def matches(name: str, ids: Array, rows_K: Int64s, distances_K: Floats) -> pa.Table:
        return table(name, ids, {"story_ids": _lists(story_ids[rows_K], np.int64), "distances": _lists(distances_K)})

    newest = {
        "story_embedding": table("story_id", story_ids, {"embedding": _lists(items["story_vectors"][1:])}),
        "product_embedding": table("product_id", product_ids, {"embedding": _lists(items["product_vectors"][1:])}),
        "stories_for_product": matches("product_id", product_ids, *nearest(products_MD, top_k)),
        "stories_for_story": matches("story_id", story_ids, *_without_itself(*nearest(stories_ND, top_k + 1))),
    }
    recall = {
        view: 1.0 if is_exact else index.recall(spread(queries), depths=[top_k])[top_k]
        for view, queries in zip(MATCHES, (products_MD, stories_ND), strict=True)
    }
    by_model = {f"{view}_by_model": rows.append_column("model", rows["model_version"]) for view, rows in newest.items()}
    return {**newest, **by_model}, recall


def read_published(storage: Storage) -> list[FeaturesPublished]:
    """The markers of all days with a champion, oldest first."""
    found = []
    for key in storage.list(PUBLISHED):
        read = json.loads(storage.read(key))
        if read["partition"]:
            days = {name: date.fromisoformat(read[name]) for name in ("day", "partition")}
            found.append(FeaturesPublished(**{"recall": {}, **read, **days}))
    return found


def newest_published(storage: Storage) -> FeaturesPublished | None:
    """The newest of these markers."""
    return next(reversed(read_published(storage)), None)


def known_at(day: date) -> datetime:
    """When a day's champion is known: the end of the day."""
    return midnight(day + timedelta(days=1))


def _store(config: Config) -> "FeatureStoreClient":
    from storyrec.features.store import open_feature_store

    return open_feature_store(config.locations.work, profile=config.profile)


def _read_items(registry: Storage, version: str) -> dict[str, Array]:
    prefix = f"{BUNDLES}/{version}"
    where = f"{registry.url}/{prefix}"
    found = registry.read_versioned(f"{prefix}/{MANIFEST}")
    manifest = Manifest.from_json(found[0], where=where) if found else None
    items = {}
    for name in (f"items/{array}.npy" for array in ARRAYS):
        content = registry.read_versioned(f"{prefix}/{name}")
        if manifest is None or content is None or hashlib.sha256(content[0]).hexdigest() != manifest.files.get(name):
            raise ModelError(
                f"{name} of the champion's bundle is missing or was changed",
                expected=f"the sums of {MANIFEST}",
                where=where,
                remedy="roll back to the champion before it, or deploy it again",
            )
        items[name[len("items/") : -len(".npy")]] = np.load(io.BytesIO(content[0]), allow_pickle=False)
    return items


def _require_widths(items: Mapping[str, Array], store: "FeatureStoreClient", *, version: str) -> None:
    for view, vectors in zip(EMBEDDINGS, ("story_vectors", "product_vectors"), strict=True):
        found, promised = items[vectors].shape[1], store.layout(view).widths[0]
        if found != promised:
            raise ModelError(
                f"the {vectors.replace('_', ' ')} of model {version} have {found} numbers",
                expected=f"{promised}, as the view {view} promises its readers",
                where="feature_repo/definitions.py",
                remedy="train at this width, or declare views of the other one: docs/feature-store.md, Model versions",
            )


def _without_itself(rows_NK: Int64s, distances_NK: Floats) -> tuple[Int64s, Floats]:
    """The matches of all stories without the story itself, or, where many are alike and it is not among them,
    without the last one."""
    is_own_NK = rows_NK == np.arange(len(rows_NK))[:, None]
    is_own_NK[~is_own_NK.any(axis=1), -1] = True
    others = (len(rows_NK), rows_NK.shape[1] - 1)
    return rows_NK[~is_own_NK].reshape(others), distances_NK[~is_own_NK].reshape(others)


def _lists(values_NK: Array, dtype: npt.DTypeLike = np.float32) -> pa.ListArray:
    num_rows, width = values_NK.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values_NK, dtype).reshape(-1)))


def _finish(storage: Storage, published: FeaturesPublished) -> FeaturesPublished:
    content = json.dumps(asdict(published), indent=2, default=str)
    storage.write(f"{PUBLISHED}{published.day}.json", content.encode())
    return published
