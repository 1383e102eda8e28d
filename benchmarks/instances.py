"""How long it takes from validated logs to training instances with their sequences, several ways.

    python benchmarks/instances.py WORK DAY [--config FILE] [--feast-rows 100000] [--only-ours]

WORK is a work folder with validated logs, DAY its last day. Each way runs in a process of its own:
    floor         DuckDB reads the same files and sorts events by user and time, items but for their covers by id
    storyrec      build_dataset without anything kept from earlier runs
    again         build_dataset of the same logs once more, written anew: all days are kept parts
    unchanged     build_dataset of the same logs, already there
    pandas        read, sort, and search each user's clicks: what one would write first
    feast         historical retrieval of the same sequences from the feature store, for some of the rows

Prints seconds, CPU seconds, the peak of memory, and the ratio to the floor; and checks that all ways that make
sequences made the same ones, row by row. The last two hold all events and take Python's time a row: --only-ours
leaves them out, for logs that they are too slow or too large for.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from measure import Int64s, describe_machine, in_own_process, peak_memory_mib

from storyrec.config import Config, load_config, update_config
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.features.build import build_features
from storyrec.features.events import COLUMNS, EVENT_TIME
from storyrec.features.store import open_feature_store
from storyrec.schema import Domain

EVENTS = {
    "impressions": ("user_id", "shown_at", "story_id", "clicked"),
    "product_clicks": ("user_id", "clicked_at", "product_id"),
}
ITEMS = {"stories": "story_id", "products": "product_id"}


@dataclass(frozen=True)
class Measured:
    """What one way took.

    Attributes:
        seconds, cpu_seconds: of the whole.
        peak_mib: of the process.
        sequences: [rows, 2 * length] item ids, stories before products, most recent click last, padded with 0 on
            the left; None for a way that makes none.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    sequences: Int64s | None


def measured(way: Callable[..., Int64s | None], *arguments: Any) -> Measured:
    """Run one way; called in a process of its own."""
    wall, cpu = time.perf_counter(), time.process_time()
    sequences = way(*arguments)
    return Measured(time.perf_counter() - wall, time.process_time() - cpu, peak_memory_mib(), sequences)


def read_and_sort(work: Path, day: str) -> None:
    """The floor: nothing is joined, nothing is written but DuckDB's own tables."""
    with tempfile.TemporaryDirectory() as spill, duckdb.connect(config={"temp_directory": spill}) as connection:
        connection.execute("SET memory_limit = '4GB'; SET enable_progress_bar = false")
        for table, columns in EVENTS.items():
            order = ", ".join(columns)
            connection.execute(f"CREATE TABLE {table} AS SELECT {order} FROM {files(work, table)} ORDER BY {order}")
        for table, key in ITEMS.items():
            rows = files(work, table)
            connection.execute(f"CREATE TABLE {table} AS SELECT * EXCLUDE (cover) FROM {rows} ORDER BY {key}")
            connection.execute(f"SELECT sum(cover[1]) FROM {rows}")


def build(config: Config, day: str, out: Path, remove: tuple[Path, ...] = ()) -> None:
    """Our way, without what is removed first."""
    for folder in remove:
        shutil.rmtree(folder, ignore_errors=True)
    build_dataset(config, day=date.fromisoformat(day), out=out)


def search_by_user(config: Config, dataset: Path) -> Int64s:
    """The training instances' sequences with pandas: a search in the clicks of each user."""
    data = Dataset.load(dataset)
    work, length = Path(config.locations.work), data.sequence_length
    impressions = pd.read_parquet(
        work / "validated/impressions", columns=["user_id", "story_id", "shown_at", "clicked"]
    )
    clicks = {
        Domain.STORY: impressions[impressions["clicked"]].rename(columns={"story_id": "item", "shown_at": "time"}),
        Domain.PRODUCT: pd.read_parquet(
            work / "validated/product_clicks", columns=["user_id", "product_id", "clicked_at"]
        ).rename(columns={"product_id": "item", "clicked_at": "time"}),
    }
    train = pd.DataFrame({"user_id": data.train.user_ids_B, "shown_us": data.train.shown_us_B})
    found = np.zeros((len(train), 2 * length), np.int64)
    for column, log in enumerate(clicks.values()):
        log = log.sort_values(["user_id", "time", "item"])
        log["us"] = log["time"].astype("datetime64[us, UTC]").astype(np.int64)
        by_user = {user: (own["us"].to_numpy(), own["item"].to_numpy()) for user, own in log.groupby("user_id")}
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64))
        for user, own in train.groupby("user_id"):
            times, items = by_user.get(user, nothing)
            for row, stop in zip(own.index, np.searchsorted(times, own["shown_us"]), strict=True):
                some = items[max(0, stop - length) : stop]
                found[row, (column + 1) * length - len(some) : (column + 1) * length] = some
    return found


def retrieve(config: Config, dataset: Path, rows: Int64s) -> Int64s:
    """The same from the feature store."""
    data = Dataset.load(dataset)
    store = open_feature_store(config.locations.work, profile=config.profile)
    times = pd.to_datetime(data.train.shown_us_B[rows], unit="us", utc=True)
    entities = pd.DataFrame({"user_id": data.train.user_ids_B[rows], EVENT_TIME: times})
    retrieved = store.historical(entities, service="ranker_v1")
    found = np.zeros((len(rows), 2 * data.sequence_length), np.int64)
    for column, (items, _) in enumerate(COLUMNS.values()):
        end = (column + 1) * data.sequence_length
        for row, some in enumerate(retrieved[items]):
            if isinstance(some, list | np.ndarray) and len(some):
                found[row, end - len(some) : end] = some
    return found


def slices(data: Dataset) -> Int64s:
    """The sequences that the training instances point to, without history's limit."""
    length = data.sequence_length
    found = np.zeros((len(data.train), 2 * length), np.int64)
    for column, (log, start_B, stop_B) in enumerate(
        (
            (data.story_clicks, data.train.story_start_B, data.train.story_stop_B),
            (data.product_clicks, data.train.product_start_B, data.train.product_stop_B),
        )
    ):
        places_BL = stop_B[:, None] - np.arange(length, 0, -1)
        mask_BL = places_BL >= start_B[:, None]
        found[:, column * length : (column + 1) * length][mask_BL] = log.item_ids_C[places_BL[mask_BL]]
    return found


def files(work: Path, table: str) -> str:
    """The files of a validated table, for DuckDB."""
    return f"read_parquet('{work}/validated/{table}/dt=*/*.parquet', hive_partitioning = false)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("day")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--feast-rows", type=int, default=100_000)
    parser.add_argument("--only-ours", action="store_true")
    arguments = parser.parse_args()
    config = update_config(load_config(arguments.config), {"locations": {"work": str(arguments.work)}})
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        out, parts = Path(folder) / "dataset", arguments.work / "parts"
        ways: dict[str, tuple[Any, ...]] = {
            "floor": (read_and_sort, arguments.work, arguments.day),
            "storyrec": (build, config, arguments.day, out, (out, parts)),
            "again": (build, config, arguments.day, out, (out,)),
            "unchanged": (build, config, arguments.day, out),
        }
        if not arguments.only_ours:
            ways["pandas"] = (search_by_user, config, out)
        results = {}
        for name, (way, *rest) in ways.items():
            results[name] = in_own_process(measured, way, *rest)
            report(name, results[name], floor=results["floor"])
        data = Dataset.load(out)
        print(f"{len(data.train):,} training, {len(data.validation) + len(data.holdout):,} other instances")
        if arguments.only_ours:
            return
        ours = slices(data)
        print("pandas made the same sequences:", np.array_equal(ours, results["pandas"].sequences))
        build_features(config, day=date.fromisoformat(arguments.day))
        rows = np.linspace(0, len(ours) - 1, min(arguments.feast_rows, len(ours))).astype(np.int64)
        feast = in_own_process(measured, retrieve, config, out, rows)
        report(f"feast, {len(rows):,} rows", feast, floor=results["floor"])
        print("the feature store gave the same sequences:", np.array_equal(ours[rows], feast.sequences))


def report(name: str, found: Measured, *, floor: Measured) -> None:
    """One line."""
    ratio = found.seconds / floor.seconds
    print(
        f"{name:20} {found.seconds:8.1f} s {found.cpu_seconds:8.1f} CPU s {found.peak_mib:8,.0f} MiB "
        f"{ratio:6.2f} of the floor",
        flush=True,
    )


if __name__ == "__main__":
    main()
