"""The synthetic marketplace: logs in the log contract, and the true click probabilities beside them.

`presets` says what it is calibrated to, `lexicon` holds the words, `world` the latents, `truth` what makes a click,
`wording`, `coined` and `covers` what an item looks like, `behaviour`, `wants`, `pools` and `exposures` a day of users,
`dirt` the faults, `scenarios` drift and trouble. `catalog` and `events` write it down, part by part, so that memory
holds the latents of the items and one part of the items or users in each process.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from storyrec.errors import ConfigError, DataError
from storyrec.logs.simulate.catalog import write_catalogs
from storyrec.logs.simulate.dirt import Counts
from storyrec.logs.simulate.events import save_pools, write_events
from storyrec.logs.simulate.presets import PRESETS, Preset
from storyrec.logs.simulate.scenarios import SCENARIOS
from storyrec.logs.simulate.truth import Knobs
from storyrec.logs.simulate.world import Catalogs, draw_catalogs
from storyrec.processes import run_tasks
from storyrec.progress import track
from storyrec.schema import TABLES
from storyrec.storage import write_folder

__all__ = ["MARKER", "Knobs", "simulate"]

MARKER = "_marketplace.json"
USERS_PER_PART = 30_000
"""Some 800,000 impressions a day, which take half a gigabyte while they are drawn."""

ITEMS_PER_PART = 300_000
"""Whose covers take 600 MB."""

Named = TypeVar("Named")


def simulate(
    *,
    out_logs: Path,
    out_truth: Path,
    num_users: int | None,
    num_days: int,
    first_day: date,
    seed: int,
    preset: str = "laptop",
    scenario: str = "none",
    knobs: Knobs | None = None,
    num_processes: int = 1,
) -> Counts | None:
    """Write a marketplace's logs, and its truth to a place that only the oracle reads.

    The first day's partitions also hold the items that were there from the start. Both folders
    appear whole, the logs last. The same arguments give the same bytes, with any number of processes.

    Args:
        out_logs: `<table>/dt=D/part-<n>.parquet` of every table and `_marketplace.json`.
        out_truth: `impressions/dt=D/part-<n>.parquet` with the click probability of every true impression.
        num_users: None: as many as the preset has.
        preset: a name in `PRESETS`.
        scenario: a name in `SCENARIOS`.
        knobs: strengths of the click truth; without them, the calibrated ones.
        num_processes: that work at a time, where there are enough users to share.

    Returns:
        Counts of what was written; None where both folders already hold this very marketplace.

    Raises:
        ConfigError: there is no such preset or scenario.
        DataError: one of the folders holds something else.
        StorageError: the disk is full or a folder refuses; neither folder was touched.
    """
    knobs = knobs or Knobs()
    proportions = _named(PRESETS, preset, setting="simulate.preset")
    num_users = num_users or proportions.num_users
    befalls = _named(SCENARIOS, scenario, setting="simulate.scenario")
    settings = {
        "format": proportions.format,
        "num_users": num_users,
        "num_days": num_days,
        "first_day": first_day.isoformat(),
        "seed": seed,
        "preset": preset,
        "scenario": scenario,
        "knobs": asdict(knobs),
    }
    done = [_holds(folder, settings) for folder in (out_logs, out_truth)]
    if all(done):
        return None
    first_us = int(datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC).timestamp()) * 1_000_000
    num_parts = -(-num_users // USERS_PER_PART)
    counts = Counts()
    with (
        write_folder(out_logs) as logs,
        write_folder(out_truth) as truth,
        track("simulate", total=(num_parts + 1) * num_days) as progress,
    ):
        latents = logs / ".latents"  # goes with the folder if the run is cut off
        catalogs = draw_catalogs(
            proportions,
            num_users=num_users,
            num_days=num_days,
            first_us=first_us,
            late_category=befalls.late_category,
            seed=seed,
        )
        catalogs.save(latents)
        save_pools(catalogs, latents, num_days=num_days)
        del catalogs
        common: dict[str, Any] = {
            "logs": logs,
            "first_day": first_day,
            "num_days": num_days,
            "knobs": knobs,
            "scenario": befalls,
            "seed": seed,
        }
        write_items = partial(_write_catalogs, latents, items_per_part=ITEMS_PER_PART, preset=proportions, **common)
        write_users = [
            partial(
                _write_events,
                latents,
                preset=proportions.at(num_users),
                truth=truth,
                part=part,
                users_per_part=USERS_PER_PART,
                num_users=num_users,
                first_us=first_us,
                **common,
            )
            for part in range(num_parts)
        ]
        if num_parts == 1:
            for task in (write_items, *write_users):
                counts.merge(task(advance=progress.advance))
        else:
            for part_counts in run_tasks([write_items, *write_users], num_processes=num_processes):
                counts.merge(part_counts)
                progress.advance(num_days)
        shutil.rmtree(latents)
        marker = {
            "settings": settings,
            "rows": {name: counts.rows[name] for name in TABLES},
            "faults": {name: counts.faults[name] for name in TABLES},
        }
        for folder in (logs, truth):
            (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return counts


def _write_catalogs(latents: Path, **arguments: Any) -> Counts:
    return write_catalogs(Catalogs.load(latents), **arguments)


def _write_events(latents: Path, *, preset: Preset, **arguments: Any) -> Counts:
    return write_events(preset, Catalogs.load(latents), pools=latents, **arguments)


def _named(known: Mapping[str, Named], name: str, *, setting: str) -> Named:
    if name not in known:
        raise ConfigError(
            f"there is no {setting} '{name}'", expected=f"one of {', '.join(known)}", remedy=f"set {setting} to one"
        )
    return known[name]


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
