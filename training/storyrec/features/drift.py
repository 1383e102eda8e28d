"""Whether a day's features are distributed as those of the days before it.

What is looked at: the lengths of the sequences of a day's clicks, and the norms of the item embeddings in force.
The population stability index is sum (p - q) ln(p / q) over bins, p the day's shares and q the trailing days'.

Below locations.work:
    features/drift/dt=D.json      the report
    metrics/drift.prom            for the textfile collector of Prometheus' node exporter: the day measured last
"""

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from rich.console import Console
from rich.table import Table

from storyrec.config import Config
from storyrec.errors import DataError
from storyrec.features.events import COLUMNS, EVENT_TIME, VIEWS
from storyrec.features.partitions import midnight, read_marker, work_folder
from storyrec.features.publish import EMBEDDINGS, read_published
from storyrec.features.sequences import DAY_US, to_int64
from storyrec.logs.partitions import day_number
from storyrec.schema import TIMESTAMP
from storyrec.storage import FolderStorage, write_file

DRIFT = "features/drift/dt="
METRICS = "metrics/drift.prom"
SHIFTED, DRIFTED = 0.1, 0.25  # the customary limits of the index
NUM_BINS = 10
STYLES = {"stable": "green", "shifted": "yellow", "drifted": "red", "not judged": "dim"}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """One feature's values on a day, beside those of the trailing days.

    Attributes:
        name: view and what is measured of it.
        num_values, num_trailing: how many values.
        median, trailing_median: None without values.
        stability_index: population stability index, >= 0; None without values.
        verdict: "stable", "shifted" (from 0.1 on), "drifted" (from 0.25 on), or "not judged": too few trailing days.
    """

    name: str
    num_values: int
    num_trailing: int
    median: float | None
    trailing_median: float | None
    stability_index: float | None
    verdict: str


@dataclass(frozen=True)
class DriftReport:
    """What features/drift/dt=D.json says: the day, how many days it is compared with at most, and what was found."""

    day: date
    trailing_days: int
    distributions: tuple[Distribution, ...]


def measure_drift(config: Config, *, day: date) -> DriftReport:
    """Compare a day's sequence lengths and embedding norms with those of the trailing days, and write the report.

    Args:
        config: settings; locations.work, rules.trailing_days and rules.min_trailing_days.
        day: partition key, built.

    Raises:
        MissingPartition: the day's features are not built.
    """
    storage = FolderStorage(work_folder(config.locations.work))
    read_marker(storage, day)
    trailing, fewest = config.rules.trailing_days, config.rules.min_trailing_days
    distributions = [
        *_sequence_lengths(storage, day, trailing_days=trailing, min_trailing_days=fewest),
        *_embedding_norms(storage, day, trailing_days=trailing, min_trailing_days=fewest),
    ]
    report = DriftReport(day, trailing, tuple(distributions))
    storage.write(f"{DRIFT}{day}.json", json.dumps(asdict(report), indent=2, default=str).encode())
    write_file(storage.folder / METRICS, _metrics(report))
    return report


def require_stable(report: DriftReport) -> None:
    """Refuse a day that drifted.

    Raises:
        DataError: a distribution has drifted.
    """
    drifted = [found for found in report.distributions if found.verdict == "drifted"]
    if drifted:
        raise DataError(
            f"features of {report.day} have drifted: "
            + ", ".join(f"{found.name} (stability index {found.stability_index:.2f})" for found in drifted),
            expected=f"an index below {DRIFTED} against the {report.trailing_days} days before",
            where=f"{DRIFT}{report.day}.json",
            remedy="look at the day's validation report and at what was deployed; nothing was stopped",
        )


def stability_index(values: Floats, trailing: Floats, *, edges: Floats) -> float:
    """Population stability index of some values against trailing ones.

    Args:
        values, trailing: at least one each.
        edges: inner edges of the bins, ascending; a value equal to an edge is in the bin below it.

    Returns:
        0 where both are alike, never negative. Half a value is added to every bin, so that an empty one counts
        and does not decide.
    """
    p, q = (
        (np.bincount(np.searchsorted(edges, some), minlength=len(edges) + 1) + 0.5)
        / (len(some) + 0.5 * (len(edges) + 1))
        for some in (values, trailing)
    )
    return float(((p - q) * np.log(p / q)).sum())


def print_drift(report: DriftReport, *, console: Console) -> None:
    """Show a report to a person."""
    table = Table(title=f"{report.day} against up to {report.trailing_days} days before", title_justify="left")
    table.add_column("distribution", no_wrap=True, min_width=max(len(found.name) for found in report.distributions))
    for name in ("values", "trailing", "median", "trailing median", "stability index", "verdict"):
        table.add_column(name, justify="right")
    for found in report.distributions:
        measured = (found.median, found.trailing_median, found.stability_index)
        numbers = ("–" if number is None else f"{number:.3g}" for number in measured)
        counts = (f"{found.num_values:,}", f"{found.num_trailing:,}")
        table.add_row(found.name, *counts, *numbers, f"[{STYLES[found.verdict]}]{found.verdict}[/]")
    console.print(table)


def _sequence_lengths(
    storage: FolderStorage, day: date, *, trailing_days: int, min_trailing_days: int
) -> list[Distribution]:
    """How many clicks a sequence held after each click of a day: what the impressions of a day see."""
    found = []
    start, end = midnight(day - timedelta(days=trailing_days)), midnight(day + timedelta(days=1))
    for domain, view in VIEWS.items():
        time = ds.field(EVENT_TIME)
        rows = ds.dataset(storage.folder / "features" / view, format="parquet").to_table(
            filter=(time > pa.scalar(start, TIMESTAMP)) & (time <= pa.scalar(end, TIMESTAMP)),
            columns={"time": time, "length": pc.list_value_length(ds.field(COLUMNS[domain][0]))},
        )
        lengths = rows["length"].to_numpy().astype(np.float64)
        days = (to_int64(rows["time"]) - 1) // DAY_US  # a row is valid one microsecond after its click
        is_today = days == day_number(day)
        found.append(
            _compare(
                f"{view}: clicks",
                lengths[is_today],
                lengths[~is_today],
                edges=np.arange(1.0, lengths.max(initial=1)),
                is_judged=len(np.unique(days[~is_today])) >= min_trailing_days,
            )
        )
    return found


def _embedding_norms(
    storage: FolderStorage, day: date, *, trailing_days: int, min_trailing_days: int
) -> list[Distribution]:
    """The norms of the embeddings that were published as of a day; a day counts as often as it was in force."""
    in_force = {published.day: published.partition for published in read_published(storage)}
    before = {d: p for d, p in in_force.items() if timedelta(0) < day - d <= timedelta(days=trailing_days)}
    found = []
    for view in EMBEDDINGS:
        norms = {
            partition: _norms(storage.folder / f"features/{view}/dt={partition}")
            for partition in {*before.values(), in_force.get(day)} - {None}
        }
        nothing = np.empty(0)
        values = norms.get(in_force.get(day), nothing)
        trailing = np.concatenate([nothing, *(norms[partition] for partition in before.values())])
        edges = np.unique(np.quantile(trailing, np.linspace(0, 1, NUM_BINS + 1)[1:-1])) if len(trailing) else nothing
        is_judged = len(before) >= min_trailing_days
        found.append(_compare(f"{view}: norm", values, trailing, edges=edges, is_judged=is_judged))
    return found


def _norms(folder: Path) -> Floats:
    rows = ds.dataset(folder, format="parquet").to_table(columns=["embedding"])["embedding"].combine_chunks()
    return np.linalg.norm(rows.flatten().to_numpy().reshape(len(rows), -1), axis=1).astype(np.float64)


def _compare(name: str, values: Floats, trailing: Floats, *, edges: Floats, is_judged: bool) -> Distribution:
    index = stability_index(values, trailing, edges=edges) if len(values) and len(trailing) else None
    if index is None or not is_judged:
        verdict = "not judged"
    else:
        verdict = "drifted" if index >= DRIFTED else "shifted" if index >= SHIFTED else "stable"
    return Distribution(name, len(values), len(trailing), _median(values), _median(trailing), index, verdict)


def _metrics(report: DriftReport) -> bytes:
    registry = CollectorRegistry()
    names = {
        "stability_index": "Population stability index of a distribution against the trailing days.",
        "drifted": "Whether a distribution has drifted, by the day that was measured last.",
    }
    index, drifted = (
        Gauge(f"storyrec_feature_{n}", says, ["distribution"], registry=registry) for n, says in names.items()
    )
    for found in report.distributions:
        drifted.labels(found.name).set(found.verdict == "drifted")
        if found.stability_index is not None:
            index.labels(found.name).set(found.stability_index)
    return generate_latest(registry)


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None
