"""How old the values that are served may be, and how old they are: one promise a view.

The promise is the view's tag `max_age` in `feature_repo/definitions.py`. Sequences are as old as the end of
what is materialized; items, where they are online, as old as the end of the last day for which the champion was
found to be published.

Below locations.work:
    metrics/features.prom     for the textfile collector of Prometheus' node exporter
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from rich.console import Console
from rich.table import Table

from storyrec.config import Config
from storyrec.errors import ConfigError, DataError
from storyrec.features.partitions import midnight, work_folder
from storyrec.features.publish import VIEWS, known_at, newest_published
from storyrec.storage import FolderStorage, write_file

METRICS = "metrics/features.prom"
ONE_DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Freshness:
    """A view's promise and what was found.

    Attributes:
        view: its name.
        promised: the age that its values never exceed.
        complete_until: its values online hold everything up to here; None: nothing is online.
        age: since then; None: nothing is online.
    """

    view: str
    promised: timedelta
    complete_until: datetime | None
    age: timedelta | None

    @property
    def is_kept(self) -> bool:
        """Whether the promise is kept."""
        return self.age is not None and self.age <= self.promised


def measure_freshness(config: Config, *, day: date | None = None, now: datetime | None = None) -> list[Freshness]:
    """Measure the age of every view that promises one, and write it for Prometheus.

    Args:
        config: settings; locations.work and profile.
        day: of a run; a run that comes late, such as a backfill, is judged as of the end of the day after.
        now: the time of the measurement; the clock's without it.

    Raises:
        ConfigError: a promise cannot be read.
        PlatformError: the feature store does not answer.
    """
    from storyrec.features.store import open_feature_store

    now = now or datetime.now(UTC)
    if day is not None:
        now = min(now, midnight(day + 2 * ONE_DAY))
    storage = FolderStorage(work_folder(config.locations.work))
    client = open_feature_store(config.locations.work, profile=config.profile)
    published = newest_published(storage)
    published_until = known_at(published.day) if published else None
    found = []
    for view, tags in sorted(client.tags().items()):
        if "max_age" in tags:
            until = client.materialized_until(view)
            if view in VIEWS and until is not None:
                until = published_until
            found.append(Freshness(view, _promise(view, tags["max_age"]), until, now - until if until else None))
    write_file(storage.folder / METRICS, _metrics(found))
    return found


def require_kept(found: Sequence[Freshness]) -> None:
    """Refuse values that are older than promised.

    Raises:
        DataError: a promise is broken.
    """
    broken = [view for view in found if not view.is_kept]
    if broken:
        raise DataError(
            "the freshness promise is broken: "
            + ", ".join(f"{view.view} is {_age(view)} (promised: {view.promised / HOUR:g} h)" for view in broken),
            expected="no view older than its promise",
            where="the online feature store",
            remedy="look which DAG of the day has not run: build_features brings sequences, publish_features items",
        )


def print_freshness(found: Sequence[Freshness], *, console: Console) -> None:
    """Show promises and ages to a person."""
    table = Table(title="Feature views online", title_justify="left")
    table.add_column("view", no_wrap=True, min_width=max(len(view.view) for view in found))
    for name in ("promised age", "complete until (UTC)", "age", "promise"):
        table.add_column(name, justify="right")
    for view in found:
        until = f"{view.complete_until:%Y-%m-%d %H:%M}" if view.complete_until else "–"
        kept = "[green]kept[/]" if view.is_kept else "[red]broken[/]"
        table.add_row(view.view, f"{view.promised / HOUR:g} h", until, _age(view).removesuffix(" old"), kept)
    console.print(table)


def _age(view: Freshness) -> str:
    return "not there" if view.age is None else f"{view.age / HOUR:,.1f} h old"


def _promise(view: str, text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)h", text)
    if match is None:
        raise ConfigError(
            f"the promised age of {view} is '{text}'",
            expected="hours, such as 30h",
            where="the tag max_age in feature_repo/definitions.py",
            remedy="correct the tag",
        )
    return int(match.group(1)) * HOUR


def _metrics(found: Sequence[Freshness]) -> bytes:
    """Moments instead of ages where there is a choice: they stay true while nobody measures."""
    registry = CollectorRegistry()
    names = {
        "promised_age_seconds": "The age that a feature view's values never exceed.",
        "complete_until_timestamp_seconds": "Up to when a feature view's values online hold everything.",
        "promise_kept": "Whether they were no older than promised when it was measured.",
    }
    promised, until, kept = (
        Gauge(f"storyrec_feature_{n}", says, ["view"], registry=registry) for n, says in names.items()
    )
    for view in found:
        promised.labels(view.view).set(view.promised.total_seconds())
        kept.labels(view.view).set(view.is_kept)
        if view.complete_until:
            until.labels(view.view).set(view.complete_until.timestamp())
    return generate_latest(registry)
