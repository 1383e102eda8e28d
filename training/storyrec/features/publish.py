"""Step `publish_features`: the champion's item embeddings and the stories for products, for other teams.

Every row names the model that made it. What is published depends on the champion alone: a day
whose champion is published already writes a marker and nothing else.

Below locations.work:
    features/{story_embedding,product_embedding,stories_for_product}/dt=D/part-0.parquet
    features/published/dt=D.json      the marker, written last, when everything is online
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.config import Config
from storyrec.errors import ModelError
from storyrec.features.events import EVENT_TIME, KNOWN_TIME
from storyrec.features.partitions import midnight, work_folder, write_rows
from storyrec.manifest import MANIFEST, Manifest
from storyrec.match import nearest_stories
from storyrec.progress import track
from storyrec.registry import BUNDLES, read_champion
from storyrec.schema import TIMESTAMP
from storyrec.storage import FolderStorage, Storage, open_storage

VIEWS = ("story_embedding", "product_embedding", "stories_for_product")
ARRAYS = (
    "story_ids",
    "story_vectors",
    "story_match_vectors",
    "product_ids",
    "product_vectors",
    "product_match_vectors",
)
PUBLISHED = "features/published/dt="

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class FeaturesPublished:
    """What is published after a run of `publish_features`.

    Attributes:
        day: the day asked for.
        version: of the champion; empty while nothing is deployed.
        partition: the day whose partitions hold its rows; None while nothing is deployed.
        num_stories: stories per product, a setting.
        num_rows: rows by view.
        changed: whether this run published them, or an earlier one had.
    """

    day: date
    version: str
    partition: date | None
    num_stories: int
    num_rows: dict[str, int]
    changed: bool


def publish_features(config: Config, *, day: date) -> FeaturesPublished:
    """Publish the items of the deployed champion, offline and online.

    A champion is published once; the same champion gives the same rows. Going back to an earlier
    champion publishes that one again. What is online never grows older: where a later day has
    published already, this run's rows take that day's place in time.

    Args:
        config: settings; locations, profile and match.num_stories.
        day: partition key of the run that asks for it.

    Raises:
        ModelError: the champion's bundle is damaged.
        PlatformError: the feature store does not answer.
    """
    storage = FolderStorage(work_folder(config.locations.work))
    registry = open_storage(config.locations.registry, s3_endpoint=config.locations.s3_endpoint)
    num_stories = config.match.num_stories
    pointer = read_champion(registry)
    if pointer is None:
        return _finish(storage, FeaturesPublished(day, "", None, num_stories, dict.fromkeys(VIEWS, 0), False))
    version = pointer.champion.version
    newest = _newest(storage)
    if newest and (newest.version, newest.num_stories) == (version, num_stories):
        same = FeaturesPublished(day, version, newest.partition, num_stories, newest.num_rows, False)
        return _finish(storage, same) if day > newest.day else same

    partition = max(day, newest.day) if newest else day
    with track("publish_features", total=1 + 2 * len(VIEWS)) as tracker:
        tables = item_tables(_read_items(registry, version), version=version, top_k=num_stories, day=partition)
        tracker.advance(note=f"{len(tables['stories_for_product'])} products matched")
        for view, rows in tables.items():
            write_rows(storage, view, partition, rows)
            tracker.advance(note=view)

        from storyrec.features.store import open_feature_store

        store = open_feature_store(config.locations.work, profile=config.profile)
        for view, rows in tables.items():
            store.materialize(view, start=midnight(partition), end=known_at(partition))
            tracker.advance(note=f"{len(rows)} rows of {view} online")
    num_rows = {view: rows.num_rows for view, rows in tables.items()}
    return _finish(storage, FeaturesPublished(partition, version, partition, num_stories, num_rows, True))


def item_tables(items: Mapping[str, Array], *, version: str, top_k: int, day: date) -> dict[str, pa.Table]:
    """The rows of the three item views.

    Args:
        items: the arrays of a bundle's item table; row 0 is padding.
        version: of the bundle.
        top_k: stories per product.
        day: the rows' partition; they are valid and known from its end on.
    """
    story_ids, product_ids = items["story_ids"][1:], items["product_ids"][1:]
    rows_MK, distances_MK = nearest_stories(
        items["product_match_vectors"][1:].astype(np.float32),
        items["story_match_vectors"][1:].astype(np.float32),
        top_k=top_k,
    )

    def table(name: str, ids: Array, columns: Mapping[str, pa.Array]) -> pa.Table:
        versions = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int8), [version]).cast(pa.string())
        time = pa.array(np.full(len(ids), known_at(day).timestamp() * 1e6, np.int64)).cast(TIMESTAMP)
        times = {EVENT_TIME: time, KNOWN_TIME: time}
        return pa.table({name: pa.array(ids), **columns, "model_version": versions, **times})

    return {
        "story_embedding": table("story_id", story_ids, {"embedding": _lists(items["story_vectors"][1:])}),
        "product_embedding": table("product_id", product_ids, {"embedding": _lists(items["product_vectors"][1:])}),
        "stories_for_product": table(
            "product_id",
            product_ids,
            {"story_ids": _lists(story_ids[rows_MK], np.int64), "distances": _lists(distances_MK)},
        ),
    }


def known_at(day: date) -> datetime:
    """When a day's champion is known: the end of the day."""
    return midnight(day + timedelta(days=1))


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


def _lists(values_NK: Array, dtype: npt.DTypeLike = np.float32) -> pa.ListArray:
    num_rows, width = values_NK.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values_NK, dtype).reshape(-1)))


def _newest(storage: Storage) -> FeaturesPublished | None:
    """The newest marker of a day with a champion."""
    for key in reversed(storage.list(PUBLISHED)):
        read = json.loads(storage.read(key))
        if read["partition"]:
            days = {name: date.fromisoformat(read[name]) for name in ("day", "partition")}
            return FeaturesPublished(**{**read, **days})
    return None


def _finish(storage: Storage, published: FeaturesPublished) -> FeaturesPublished:
    content = json.dumps(asdict(published), indent=2, default=str)
    storage.write(f"{PUBLISHED}{published.day}.json", content.encode())
    return published
