"""A tiny marketplace with planted structure, as validated partitions and as a dataset.

Every item belongs to one of a few clusters; its cover lies near the cluster's centre (the domains'
centres are rotated apart) and its title uses the cluster's words. A user clicks products of the
clusters she likes, and clicks stories of these clusters far more often than others. So a ranker can learn from
both sequences, and from nothing at all where the labels are permuted.

    from builders import planted_config, planted_dataset, write_validated
"""

import json
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.config import Config
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.schema import COVER_WIDTH, SOURCES, TABLES, TIMESTAMP

FIRST_DAY = date(2026, 3, 1)
DAY_US = 86_400_000_000


def write_partition(root: Path, table: str, day: date, rows: pa.Table | list[dict[str, Any]]) -> None:
    """Write the rows of one validated day; dicts may leave nullable columns out."""
    if isinstance(rows, list):
        rows = pa.Table.from_pylist(rows, schema=TABLES[table])
    path = root / f"validated/{table}/dt={day}/part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)


def write_report(root: Path, day: date, *, status: str = "valid") -> None:
    """Mark a day as validated, or as stopped."""
    path = root / f"reports/dt={day}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"day": str(day), "status": status}))


def write_validated(
    root: Path,
    *,
    seed: int = 0,
    num_users: int = 150,
    num_days: int = 5,
    num_clusters: int = 4,
    items_per_day: int = 40,
    impressions_per_user_day: int = 12,
    permuted: bool = False,
    covers: bool = True,
    day_resolution: bool = False,
    first_day: date = FIRST_DAY,
) -> date:
    """Write a marketplace's validated days and reports below a work folder.

    Args:
        root: the folder that `locations.work` names.
        seed: the same seed writes the same rows.
        items_per_day: new stories and as many new products a day.
        permuted: shuffle the labels over all impressions, so that nothing can be learned.
        covers: without them every cover is null.
        day_resolution: all times are midnight.

    Returns:
        The last day, the one to build a dataset of.
    """
    generator = np.random.default_rng(seed)
    num_items = num_days * items_per_day
    item_clusters = generator.integers(num_clusters, size=num_items)  # story i mounts product i: one cluster
    user_clusters = generator.integers(num_clusters, size=num_users)
    start_us = (first_day - date(1970, 1, 1)).days * DAY_US

    def times(day_B: np.ndarray) -> pa.Array:
        within = np.zeros(len(day_B), np.int64) if day_resolution else generator.integers(DAY_US, size=len(day_B))
        return pa.array(start_us + day_B * DAY_US + within).cast(TIMESTAMP)

    tables: dict[str, tuple[pa.Table, np.ndarray]] = {}
    for table, id_name, first_id in (("stories", "story_id", 1_000), ("products", "product_id", 500_000)):
        day_N = np.repeat(np.arange(num_days), items_per_day)
        columns = {
            id_name: first_id + np.arange(num_items),
            "title": [_title(table, cluster, generator) for cluster in item_clusters],
            "cover": _covers(table, item_clusters, generator) if covers else [None] * num_items,
            "cover_uri": pa.nulls(num_items, pa.string()),
            "published_at": pa.array(start_us + day_N * DAY_US).cast(TIMESTAMP),
        }
        if table == "stories":
            columns["source"] = [SOURCES[i % len(SOURCES)] for i in range(num_items)]
            columns["mounted_product_ids"] = [[500_000 + i] for i in range(num_items)]
        else:
            columns["category_id"] = item_clusters + 1
        tables[table] = (pa.table(columns, schema=TABLES[table]), day_N)

    user_B = np.tile(np.repeat(np.arange(num_users), impressions_per_user_day), num_days)
    day_B = np.repeat(np.arange(num_days), num_users * impressions_per_user_day)
    story_B = generator.integers(0, (day_B + 1) * items_per_day)  # whatever is published by then
    likes_B = item_clusters[story_B] == user_clusters[user_B]
    clicked_B = generator.random(len(user_B)) < np.where(likes_B, 0.7, 0.08)
    if permuted:
        clicked_B = generator.permutation(clicked_B)
    impressions = {
        "user_id": user_B + 1,
        "story_id": story_B + 1_000,
        "shown_at": times(day_B),
        "clicked": clicked_B,
        "request_id": pa.nulls(len(user_B), pa.string()),
    }
    tables["impressions"] = (pa.table(impressions, schema=TABLES["impressions"]), day_B)

    # the first in the shuffled catalog that the user likes, now and then any product
    product_B = generator.integers(0, (day_B + 1) * items_per_day)
    keep_B = (item_clusters[product_B] == user_clusters[user_B]) | (generator.random(len(user_B)) < 0.05)
    clicks = {
        "user_id": (user_B + 1)[keep_B],
        "product_id": (product_B + 500_000)[keep_B],
        "clicked_at": times(day_B[keep_B]),
    }
    tables["product_clicks"] = (pa.table(clicks, schema=TABLES["product_clicks"]), day_B[keep_B])

    for offset in range(num_days):
        day = first_day + timedelta(days=offset)
        for table, (rows, days) in tables.items():
            write_partition(root, table, day, rows.filter(pa.array(days == offset)))
        write_report(root, day)
    return first_day + timedelta(days=num_days - 1)


def planted_config(root: Path, **windows: Any) -> Config:
    """Settings for the tiny marketplace below a folder."""
    settings = {"locations": {"work": str(root)}, "features": {"min_word_count": 1}, "windows": windows}
    return Config.model_validate(settings)


def planted_dataset(seed: int = 0, *, windows: dict[str, Any] | None = None, **marketplace: Any) -> Dataset:
    """The dataset of a tiny marketplace's last day; see `write_validated` for the arguments."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        day = write_validated(root, seed=seed, **marketplace)
        return build_dataset(planted_config(root, **(windows or {})), day=day, out=root / "dataset")


def _title(table: str, cluster: int, generator: np.random.Generator) -> str:
    own = [f"{word}{cluster}" for word in ("shared", f"{table[:5]}a", f"{table[:5]}b")]
    return " ".join([*generator.choice(own, 3), *generator.choice(["new", "best", "nice", "of", "the"], 2)])


def _covers(table: str, clusters_N: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    # centres are the same for every seed, as the words are: models of two seeds can be compared
    centres = np.random.default_rng([1, len(table)]).normal(size=(clusters_N.max() + 1, COVER_WIDTH))
    shared = np.random.default_rng(2).normal(size=centres.shape)
    covers_NV = shared[clusters_N] + centres[clusters_N] + generator.normal(size=(len(clusters_N), COVER_WIDTH))
    return list((covers_NV / np.linalg.norm(covers_NV, axis=1, keepdims=True)).astype(np.float32))
