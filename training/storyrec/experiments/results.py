"""What an experiment found: every run's figures, and what they were judged on, as CSV and JSON.

The CSV alone is enough to make the tables again. Its first line is a comment that holds the data and
the notes as JSON; then comes one line per method and seed, and one per reference, whose group is
"reference" and whose seed is empty. `pandas.read_csv(path, comment="#")` reads it.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyrec.errors import DataError
from storyrec.storage import write_file

FORMAT = 1
CSV, JSON = "results.csv", "results.json"

HEADER = "# storyrec experiment: "
REFERENCE = "reference"
RUN_COLUMNS = ("seconds", "num_parameters", "best_epoch", "settings")
COLUMNS = ("experiment", "format", "method", "group", "seed", *RUN_COLUMNS)

Metrics = Mapping[str, float]
"""Figures by name, as `metrics.summarize` names them."""


@dataclass(frozen=True)
class Run:
    """One method trained with one seed.

    Attributes:
        method, group: as in `methods`.
        seed: of the initial weights, the batches and dropout.
        metrics: on the held-out impressions.
        seconds: that training took.
        num_parameters: of the model.
        best_epoch: that the weights were taken from, by the validation users.
        settings: what it was trained with.
    """

    method: str
    group: str
    seed: int
    metrics: Metrics
    seconds: float
    num_parameters: int
    best_epoch: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """An experiment's runs.

    Attributes:
        experiment: which one, such as "table4".
        data: what was judged on: name, day, digest, counts; nothing but what JSON holds.
        runs: in the order of the table.
        references: figures that no seed changes, such as those of "oracle" and "popularity".
        notes: what a reader must know besides.
    """

    experiment: str
    data: Mapping[str, Any]
    runs: tuple[Run, ...]
    references: Mapping[str, Metrics]
    notes: tuple[str, ...]


def write_results(results: Results, out: Path) -> None:
    """Write results.csv and results.json into a folder, each whole or not at all."""
    write_file(out / JSON, _to_json(results).encode())
    write_file(out / CSV, _to_csv(results).encode())


def read_results(path: Path) -> Results:
    """Results from a results.csv, a results.json, or a folder that holds one of them.

    Raises:
        DataError: there is none, it is of another format, or it is something else.
    """
    if path.is_dir():
        path = next((path / name for name in (CSV, JSON) if (path / name).exists()), path / CSV)
    try:
        text = path.read_text(encoding="utf-8")
        results = _from_json(text, where=path) if path.suffix == ".json" else _from_csv(text, where=path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_results(f"the file cannot be read as results: {_reason(error)}", where=path) from error
    runs = [(run.group, run.method, run.seed) for run in results.runs]
    doubled = next((run for run in runs if runs.count(run) > 1), None)
    if doubled:
        raise _not_results(f"'{doubled[1]}' with seed {doubled[2]} is there twice", where=path)
    return results


def _to_json(results: Results) -> str:
    document = {
        "format": FORMAT,
        "experiment": results.experiment,
        "data": results.data,
        "notes": results.notes,
        "runs": [asdict(run) | {"metrics": _without_nan(run.metrics)} for run in results.runs],
        "references": {name: _without_nan(metrics) for name, metrics in results.references.items()},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _from_json(text: str, *, where: Path) -> Results:
    document = json.loads(text)
    _check_format(document["format"], where=where)
    return Results(
        experiment=document["experiment"],
        data=document["data"],
        runs=tuple(Run(**run | {"metrics": _with_nan(run["metrics"])}) for run in document["runs"]),
        references={name: _with_nan(metrics) for name, metrics in document["references"].items()},
        notes=tuple(document["notes"]),
    )


def _to_csv(results: Results) -> str:
    all_metrics = [run.metrics for run in results.runs] + list(results.references.values())
    names = list(dict.fromkeys(name for metrics in all_metrics for name in metrics))
    buffer = io.StringIO()
    buffer.write(HEADER + json.dumps({"data": results.data, "notes": results.notes}) + "\n")
    writer = csv.DictWriter(buffer, [*COLUMNS, *names], restval="", lineterminator="\n")
    writer.writeheader()
    common = {"experiment": results.experiment, "format": FORMAT}
    for run in results.runs:
        writer.writerow(
            common
            | {name: getattr(run, name) for name in COLUMNS if hasattr(run, name)}
            | {"settings": json.dumps(run.settings)}
            | dict(run.metrics)
        )
    for name, metrics in results.references.items():
        writer.writerow(common | {"method": name, "group": REFERENCE} | dict(metrics))
    return buffer.getvalue()


def _from_csv(text: str, *, where: Path) -> Results:
    first, _, table = text.partition("\n")
    if not first.startswith(HEADER):
        raise ValueError(f"its first line does not begin with '{HEADER.strip()}'")
    header = json.loads(first.removeprefix(HEADER))
    rows = list(csv.DictReader(io.StringIO(table)))
    for version in {row["format"] for row in rows}:
        _check_format(version, where=where)
    experiments = {row["experiment"] for row in rows}
    if len(experiments) != 1:
        raise ValueError(f"it holds {len(experiments)} experiments")
    return Results(
        experiment=experiments.pop(),
        data=header["data"],
        runs=tuple(_run(row) for row in rows if row["group"] != REFERENCE),
        references={row["method"]: _row_metrics(row) for row in rows if row["group"] == REFERENCE},
        notes=tuple(header["notes"]),
    )


def _run(row: Mapping[str, str]) -> Run:
    return Run(
        method=row["method"],
        group=row["group"],
        seed=int(row["seed"]),
        metrics=_row_metrics(row),
        seconds=float(row["seconds"]),
        num_parameters=int(row["num_parameters"]),
        best_epoch=int(row["best_epoch"]),
        settings=json.loads(row["settings"]),
    )


def _row_metrics(row: Mapping[str, str]) -> Metrics:
    return {
        name: int(value) if value.isdecimal() else float(value)
        for name, value in row.items()
        if name not in COLUMNS and value != ""
    }


def _without_nan(metrics: Metrics) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _with_nan(metrics: Mapping[str, float | None]) -> Metrics:
    return {name: float("nan") if value is None else value for name, value in metrics.items()}


def _check_format(found: object, *, where: Path) -> None:
    if str(found) != str(FORMAT):
        raise _not_results(f"the results are of format {found}", where=where)


def _not_results(found: str, *, where: Path) -> DataError:
    return DataError(
        found,
        expected=f"{CSV} or {JSON} of an experiment, format {FORMAT}",
        where=str(where),
        remedy="name another file, or run the experiment again with this version",
    )


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
