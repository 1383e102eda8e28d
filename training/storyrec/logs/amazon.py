"""The importer of Amazon's review files: two categories become the log contract.

Items of the target category are the stories, its reviews the clicked impressions; the source
category gives the products and the product clicks. What a story's buyers also bought among the
products is what it mounts. Non-clicks are sampled: see `negatives`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.errors import ConfigError
from storyrec.logs.imported import IDS, MARKER, digest_file, earlier_import
from storyrec.logs.review_files import Descriptions, Reviews, find_file, read_descriptions, read_reviews
from storyrec.logs.review_tables import ReviewLogs, day_of, make_logs
from storyrec.progress import track
from storyrec.storage import write_folder

FORMAT = 1
"""Raised whenever the same files and settings give other logs."""


def import_amazon(
    *, source: Path, out: Path, target: str, source_category: str, negatives_per_click: int, seed: int
) -> dict[str, Any]:
    """Turn two categories of review files into logs.

    Writes `<table>/dt=D/part-0.parquet`, the maps of ids `_ids/{users,stories,products,categories}.parquet`
    and `_import.json`; the folder appears whole. The same files and settings give the same bytes.
    Items without any title are left out with their reviews, and counted.

    Args:
        source: folder with `reviews_<category>.json.gz` (or `_5`) and `meta_<category>.json.gz` of both.
        target: the category whose items become stories.
        source_category: the category whose items become products.
        negatives_per_click: non-clicked impressions for each click.

    Returns:
        The summary that `_import.json` holds. Where `out` already holds this import, nothing is written.

    Raises:
        DataError: a file is missing, cannot be unpacked, is broken or leaves nothing, or `out` holds something else.
        StorageError: the disk is full or the folder refuses; nothing is left of the attempt.
    """
    if target == source_category:
        raise ConfigError(
            f"target and source are both '{target}'", expected="two categories", remedy="name another --source"
        )
    paths = {
        f"{kind}_{role}": find_file(source, kind=kind, category=category)
        for role, category in (("target", target), ("source", source_category))
        for kind in ("reviews", "meta")
    }
    settings = {
        "format": FORMAT,
        "target": target,
        "source": source_category,
        "negatives_per_click": negatives_per_click,
        "seed": seed,
        "files": {path.name: digest_file(path) for path in paths.values()},
    }
    if (done := earlier_import(out, settings)) is not None:
        return done
    with write_folder(out) as folder, track("import amazon", total=5) as progress:
        story_reviews = read_reviews(paths["reviews_target"])
        stories = read_descriptions(paths["meta_target"], wanted=set(story_reviews.items))
        progress.advance(note=target)
        product_reviews = read_reviews(paths["reviews_source"])
        mounted = {name for item in stories.items.values() for name in item.related}
        products = read_descriptions(paths["meta_source"], wanted=mounted.union(product_reviews.items))
        progress.advance(note=source_category)
        logs = make_logs(
            story_reviews, stories, product_reviews, products, negatives_per_click=negatives_per_click, seed=seed
        )
        progress.advance(note="non-clicks drawn")
        _write(folder, logs)
        progress.advance(note="partitions written")
        summary = {
            "settings": settings,
            **logs.counts,
            "files": {
                paths["reviews_target"].name: _file_counts(story_reviews),
                paths["meta_target"].name: _file_counts(stories),
                paths["reviews_source"].name: _file_counts(product_reviews),
                paths["meta_source"].name: _file_counts(products),
            },
        }
        (folder / MARKER).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        progress.advance()
    return summary


def _write(folder: Path, logs: ReviewLogs) -> None:
    for name, (table, day_B) in logs.tables.items():
        order = np.argsort(day_B, kind="stable")
        rows, day_B = table.take(pa.array(order)).combine_chunks(), day_B[order]
        days, starts = np.unique(day_B, return_index=True)
        for day, start, stop in zip(days, starts, [*starts[1:], len(day_B)], strict=True):
            path = folder / name / f"dt={day_of(day)}" / "part-0.parquet"
            path.parent.mkdir(parents=True)
            # most of the thousands of partitions have a few rows: statistics and dictionaries would be the larger part
            pq.write_table(
                rows.slice(start, stop - start), path, compression="zstd", use_dictionary=False, write_statistics=False
            )
    (folder / IDS).mkdir()
    for name, source_ids in logs.ids.items():
        ids = pa.table({"id": np.arange(1, len(source_ids) + 1), "source_id": pa.array(source_ids, pa.string())})
        pq.write_table(ids, folder / IDS / f"{name}.parquet", compression="zstd")


def _file_counts(read: Reviews | Descriptions) -> dict[str, int]:
    counts = {"lines": read.num_lines, "broken": read.num_broken}
    return counts | ({"repeated": read.num_repeated} if isinstance(read, Reviews) else {})
