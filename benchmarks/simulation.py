"""How many impressions a second one process simulates, with the catalogs' covers and without.

    python benchmarks/simulation.py [--preset srd-1] [--users 20000] [--days 3]

Users and items are tasks of their own in `storyrec simulate`, each in a process on one thread; here each task runs in
a fresh process, and its CPU time counts: others on the machine count little. Prints the machine, impressions per second
of CPU time for the users' task, items per second for the catalogs' task, impressions per second of both together, and
the peak of memory.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from measure import describe_machine, in_own_process, peak_memory_mib, use_one_thread

from storyrec.logs.simulate import ITEMS_PER_PART, USERS_PER_PART, Knobs, simulate
from storyrec.logs.simulate.catalog import write_catalogs
from storyrec.logs.simulate.events import save_pools, write_events
from storyrec.logs.simulate.presets import PRESETS
from storyrec.logs.simulate.scenarios import NONE
from storyrec.logs.simulate.world import Catalogs, draw_catalogs

FIRST_DAY = date(2026, 3, 1)
FIRST_US = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
SEED = 7


@dataclass(frozen=True)
class Measured:
    """A task: rows by table, seconds of CPU time, peak of memory in MiB."""

    rows: dict[str, int]
    seconds: float
    peak_mib: float


def draw(folder: Path, preset: str, num_users: int, num_days: int) -> None:
    """Draw the items that both tasks map."""
    catalogs = draw_catalogs(
        PRESETS[preset], num_users=num_users, num_days=num_days, first_us=FIRST_US, late_category=False, seed=SEED
    )
    catalogs.save(folder / "latents")
    save_pools(catalogs, folder / "latents", num_days=num_days)


def measure(task: str, folder: Path, preset: str, num_users: int, num_days: int) -> Measured:
    """Do one task."""
    use_one_thread()
    warm = folder / f"warm-{task}"  # imports are no part of it
    simulate(
        out_logs=warm / "logs",
        out_truth=warm / "truth",
        num_users=12,
        num_days=3,
        first_day=FIRST_DAY,
        seed=SEED,
        preset=preset,
    )
    catalogs, proportions = Catalogs.load(folder / "latents"), PRESETS[preset]
    common: dict[str, Any] = {
        "logs": folder / "logs",
        "first_day": FIRST_DAY,
        "num_days": num_days,
        "knobs": Knobs(),
        "scenario": NONE,
        "seed": SEED,
    }
    started = time.process_time()
    if task == "items":
        counts = write_catalogs(catalogs, items_per_part=ITEMS_PER_PART, preset=proportions, **common)
    else:
        counts = write_events(
            proportions,
            catalogs,
            pools=folder / "latents",
            truth=folder / "truth",
            part=0,
            users_per_part=USERS_PER_PART,
            num_users=num_users,
            first_us=FIRST_US,
            **common,
        )
    return Measured(counts.rows, time.process_time() - started, peak_memory_mib())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The simulator's speed, users and items apart.")
    parser.add_argument("--preset", choices=PRESETS, default="srd-1")
    parser.add_argument("--users", type=int, default=20_000, help=f"at most {USERS_PER_PART:,}, one part")
    parser.add_argument("--days", type=int, default=3)
    arguments = parser.parse_args()
    use_one_thread()
    print(describe_machine(), flush=True)
    size = (arguments.preset, min(arguments.users, USERS_PER_PART), arguments.days)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_own_process(draw, folder, *size)
        users, items = (in_own_process(measure, task, folder, *size) for task in ("users", "items"))
    num_impressions = users.rows["impressions"]
    num_items = items.rows["stories"] + items.rows["products"]
    print(f"{size[0]}, {size[1]:,} users, {size[2]} days: {num_impressions:,} impressions, {num_items:,} items")
    print(
        f"impressions      {num_impressions / users.seconds:9,.0f} a second of CPU time, peak {users.peak_mib:,.0f} MiB"
    )
    print(f"items, covers    {num_items / items.seconds:9,.0f} a second of CPU time, peak {items.peak_mib:,.0f} MiB")
    print(
        f"both together    {num_impressions / (users.seconds + items.seconds):9,.0f} impressions a second of CPU time"
    )


if __name__ == "__main__":
    main()
