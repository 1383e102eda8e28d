"""`storyrec run`: a marketplace or logs of one's own, two days, the whole pipeline; and `up` and `down`."""

import hashlib
import os
from datetime import date, timedelta
from pathlib import Path

from rich.console import Console

from storyrec.config import Config, Locations, parse_day
from storyrec.drive import run_days, start_airflow, stop_airflow
from storyrec.errors import MissingPartition
from storyrec.logs.days import suggest_days
from storyrec.logs.partitions import list_days
from storyrec.storage import open_storage
from storyrec.summary import print_summary

NUM_DAYS = 2


def run(config: Config, *, data: Path | None = None, days: tuple[date, ...] | None = None) -> None:
    """Run days through the DAGs of a local Airflow.

    Args:
        config: settings; `locations` say where logs, working files and registry are.
        data: data root of the log contract; None: the locations of the settings, simulated where they are the
            default marketplace.
        days: partitions to run, in this order; None: the last two that make sense.

    Raises:
        StoryrecError: what the first failed step said.
    """
    console = Console(highlight=False)
    if data is not None:
        config = with_data(config, data=data)
    simulated = data is None and config.locations.logs == Locations().logs
    if days is None:
        locations = config.locations
        logs = open_storage(locations.logs, s3_endpoint=locations.s3_endpoint)
        days = simulated_days(config) if simulated else suggest_days(logs)
    run_days(
        config, days=days, console=console, meanwhile=(lambda: make_marketplace(config)) if simulated else lambda: None
    )
    print_summary(config, days=days, console=console)


def up(config: Config) -> None:
    """Start the local Airflow, leave it running, and say where it is."""
    console = Console(highlight=False)
    login = start_airflow(config, console=console)
    console.print(f"Airflow is up: {login.url}   user {login.user}   password {login.password}")


def down() -> None:
    """Stop the local Airflow with all its processes."""
    print("Airflow is down" if stop_airflow() else "Airflow was not running")


def with_data(config: Config, *, data: Path) -> Config:
    """The settings with the logs of a data root; its working files and registry get a place of their own.

    Raises:
        MissingPartition: there are no logs at that place.
    """
    locations = config.locations
    root = data.resolve()
    if not list_days(open_storage(str(root)), "impressions"):
        raise MissingPartition(
            "there are no impressions at the place of the data",
            expected="a data root: impressions/dt=YYYY-MM-DD/*.parquet and the other tables",
            where=str(root),
            remedy="name another folder, or make one with `storyrec import amazon`",
        )
    name = f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"
    changes = {"logs": str(root), "truth": ""}
    defaults = Locations()
    if locations.work == defaults.work:
        changes["work"] = f"var/{name}/work"
    if locations.registry == defaults.registry:
        changes["registry"] = f"var/{name}/registry"
    return config.model_copy(update={"locations": locations.model_copy(update=changes)})


def make_marketplace(config: Config) -> dict[str, int]:
    """Simulate the marketplace of the settings, unless it is there; returns how many rows of each table it wrote."""
    from storyrec.logs.simulate import Knobs, simulate

    settings = config.simulate
    counts = simulate(
        out_logs=Path(config.locations.logs),
        out_truth=Path(config.locations.truth),
        num_users=None if settings.num_users == "auto" else settings.num_users,
        num_days=settings.num_days,
        first_day=parse_day(settings.first_day),
        seed=settings.seed,
        preset=settings.preset,
        scenario=settings.scenario,
        knobs=Knobs(click_model=settings.click_model),
        num_processes=len(os.sched_getaffinity(0)),
    )
    return counts.rows if counts else {}


def simulated_days(config: Config) -> tuple[date, ...]:
    """The last two days that the marketplace of the settings has."""
    last = parse_day(config.simulate.first_day) + timedelta(days=config.simulate.num_days - 1)
    return tuple(last - timedelta(days=back) for back in reversed(range(NUM_DAYS)))
