"""The synthetic marketplace: logs in the log contract, and the true click probabilities beside them.

`lexicon` holds the words, `world` the latents, `truth` what makes a click, `wording` and `covers` what
an item looks like, `behaviour` and `wants` a day of users, `dirt` the faults. This file writes it down.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.errors import DataError
from storyrec.logs.simulate.behaviour import Day, simulate_day
from storyrec.logs.simulate.covers import Covers, missing_covers
from storyrec.logs.simulate.dirt import add_faults
from storyrec.logs.simulate.truth import Knobs
from storyrec.logs.simulate.wants import Wants
from storyrec.logs.simulate.wording import Wording
from storyrec.logs.simulate.world import Floats, Ints, Items, World, make_world
from storyrec.progress import track
from storyrec.schema import COVER_WIDTH, SOURCES, TABLES, TRUTH, Domain
from storyrec.storage import write_folder

__all__ = ["MARKER", "Knobs", "simulate"]

MARKER = "_marketplace.json"
FORMAT = 1
"""Raised whenever the same settings give other logs."""

MISSING_COVER_SHARE = 0.01


def simulate(
    *,
    out_logs: Path,
    out_truth: Path,
    num_users: int,
    num_days: int,
    first_day: date,
    seed: int,
    knobs: Knobs | None = None,
) -> bool:
    """Write a marketplace's logs, and its truth to a place that only the oracle reads.

    The first day's partitions also hold the items that were there from the start. Both folders
    appear whole, the logs last. The same arguments give the same bytes.

    Args:
        out_logs: `<table>/dt=D/part-0.parquet` of every table and `_marketplace.json`.
        out_truth: `impressions/dt=D/part-0.parquet` with the click probability of every true impression.
        knobs: strengths of the click truth; without them, the calibrated ones.

    Returns:
        False where both folders already hold this very marketplace: then nothing is written.

    Raises:
        DataError: one of the folders holds something else.
        StorageError: the disk is full or a folder refuses; neither folder was touched.
    """
    knobs = knobs or Knobs()
    settings = {
        "format": FORMAT,
        "num_users": num_users,
        "num_days": num_days,
        "first_day": first_day.isoformat(),
        "seed": seed,
        "knobs": asdict(knobs),
    }
    done = [_holds(folder, settings) for folder in (out_logs, out_truth)]
    if all(done):
        return False
    first_us = int(datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC).timestamp()) * 1_000_000
    with (
        write_folder(out_logs) as logs,
        write_folder(out_truth) as truth,
        track("simulate", total=num_days) as progress,
    ):
        world = make_world(
            num_users=num_users,
            num_days=num_days,
            first_us=first_us,
            shared_interests=knobs.shared_interests,
            seed=seed,
        )
        wants = Wants(world, first_us=first_us, num_days=num_days, rng=np.random.default_rng([seed, 5]))
        scribe = _Scribe(world, knobs=knobs, first_day=first_day, seed=seed, logs=logs, truth=truth)
        seen = np.zeros(0, np.int64)
        for day in range(num_days):
            events = simulate_day(
                world,
                wants,
                day=day,
                first_us=first_us,
                seen=seen,
                knobs=knobs,
                rng=np.random.default_rng([seed, 6, day]),
            )
            seen = np.sort(np.concatenate([seen, events.user_I * len(world.stories.topic_N) + events.story_I]))
            scribe.write_catalog(day)
            scribe.write_events(day, events)
            progress.advance(note=f"{first_day + timedelta(days=day)}")
        for folder in (logs, truth):
            marker = {"settings": settings, "rows": scribe.num_rows, "faults": scribe.num_faults}
            (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return True


def _holds(folder: Path, settings: dict[str, object]) -> bool:
    """Whether a folder holds the marketplace of these settings; what else it holds is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    remedy = f"name another folder, or remove this one if you do not need it: {folder}"
    if not marker.is_file():
        raise DataError(
            "the place for the simulated logs is taken by something else",
            expected=f"a new or empty folder, or one with {MARKER}",
            where=str(folder),
            remedy=remedy,
        )
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError, OSError):
        found = {}
    if found == settings:
        return True
    changed = [name for name in settings if found.get(name) != settings[name]]
    raise DataError(
        "the folder holds a marketplace of other settings: "
        + ", ".join(f"{name} = {found.get(name)}" for name in changed),
        expected=", ".join(f"{name} = {settings[name]}" for name in changed),
        where=str(folder),
        remedy=remedy,
    )


class _Scribe:
    """Writes the partitions of a world into the two folders."""

    def __init__(self, world: World, *, knobs: Knobs, first_day: date, seed: int, logs: Path, truth: Path) -> None:
        self._world, self._first_day, self._seed = world, first_day, seed
        self._logs, self._truth = logs, truth
        self._covers = Covers(gap=knobs.gap)
        self._wording = Wording(world.topics, shared_words=knobs.shared_words)
        self._product_words: list[list[str]] = []
        self.num_rows: dict[str, int] = dict.fromkeys(TABLES, 0)
        self.num_faults: dict[str, dict[str, int]] = {name: {} for name in TABLES}

    def write_catalog(self, day: int) -> None:
        """Products and stories that are new on a day; on the first, also those that were there from the start."""
        world, rng = self._world, np.random.default_rng([self._seed, 7, day])
        rows = _new_rows(world.products, day)
        self._product_words += self._wording.product_words(world.products, rows, rng=rng)
        products = {
            "product_id": rows + 1,
            "title": [" ".join(words) for words in self._product_words[rows[0] : rows[-1] + 1]],
            "cover": self._cover_column(world.products, rows, style=None, domain=Domain.PRODUCT, rng=rng),
            "cover_uri": pa.nulls(len(rows), pa.string()),
            "category_id": world.topics.category_T[world.products.topic_N[rows]] + 1,
            "published_at": world.products.published_us_N[rows],
        }
        self._write("products", day, products, rng=rng)

        rows = _new_rows(world.stories, day)
        mounts_N3 = world.traits.mounts_N3[rows]
        mounted = [self._product_words[mount] if mount >= 0 else None for mount in mounts_N3[:, 0]]
        words = self._wording.story_words(world.stories, world.traits, rows, mounted=mounted, rng=rng)
        stories = {
            "story_id": rows + 1,
            "title": [" ".join(title) for title in words],
            "cover": self._cover_column(
                world.stories, rows, style=world.traits.style_NE[rows], domain=Domain.STORY, rng=rng
            ),
            "cover_uri": pa.nulls(len(rows), pa.string()),
            "source": np.asarray(SOURCES)[world.traits.source_N[rows]],
            "published_at": world.stories.published_us_N[rows],
            "mounted_product_ids": _list_column(mounts_N3[mounts_N3 >= 0] + 1, (mounts_N3 >= 0).sum(axis=1)),
        }
        self._write("stories", day, stories, rng=rng)

    def write_events(self, day: int, events: Day) -> None:
        """Impressions, product clicks and the truth of a day."""
        rng = np.random.default_rng([self._seed, 8, day])
        num_requests = int(events.request_I[-1]) + 1 if len(events.request_I) else 0
        names = pa.array([f"{self._partition(day)}-{request:06d}" for request in range(num_requests)], pa.string())
        request_ids = names.take(pa.array(events.request_I))
        impressions = {
            "user_id": events.user_I + 1,
            "story_id": events.story_I + 1,
            "shown_at": events.shown_us_I,
            "clicked": events.clicked_I,
            "request_id": request_ids,
        }
        self._write("impressions", day, impressions, rng=rng)
        product_clicks = {
            "user_id": events.click_user_C + 1,
            "product_id": events.click_product_C + 1,
            "clicked_at": events.clicked_us_C,
        }
        self._write("product_clicks", day, product_clicks, rng=rng)
        truth = {name: impressions[name] for name in ("user_id", "story_id", "request_id", "shown_at")}
        truth["probability"] = events.probability_I
        self._write_file(self._truth / "impressions", day, _table(truth, TRUTH))

    def _write(self, name: str, day: int, columns: Mapping[str, object], *, rng: np.random.Generator) -> None:
        table, faults = add_faults(_table(columns, TABLES[name]), name=name, rng=rng)
        self._write_file(self._logs / name, day, table)
        self.num_rows[name] += table.num_rows
        for fault, count in faults.items():
            self.num_faults[name][fault] = self.num_faults[name].get(fault, 0) + count

    def _write_file(self, folder: Path, day: int, table: pa.Table) -> None:
        path = folder / f"dt={self._partition(day)}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, compression="zstd")

    def _partition(self, day: int) -> str:
        return (self._first_day + timedelta(days=day)).isoformat()

    def _cover_column(
        self, items: Items, rows: Ints, *, style: Floats | None, domain: Domain, rng: np.random.Generator
    ) -> pa.ListArray:
        cover_NV = self._covers.draw(items.latent_NZ[rows], style_NE=style, domain=domain, rng=rng)
        there_N = np.ones(len(rows), bool)
        there_N[missing_covers(len(rows), share=MISSING_COVER_SHARE, rng=rng)] = False
        return _list_column(cover_NV[there_N].reshape(-1), there_N * COVER_WIDTH, there=there_N)


def _new_rows(items: Items, day: int) -> Ints:
    """Rows are ordered by birth, so these are consecutive."""
    return np.flatnonzero(np.maximum(items.born_N, 0) == day)


def _list_column(values: Ints | Floats, lengths_N: Ints, *, there: Ints | None = None) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32)
    mask = None if there is None else pa.array(~there)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def _table(columns: Mapping[str, object], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        column = columns[field.name]
        arrays.append(column.cast(field.type) if isinstance(column, pa.Array) else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
