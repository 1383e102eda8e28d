"""What a pipeline component's process does around its step: settings, errors, and the record of the run.

Imports nothing of Kubeflow: `components/` passes paths.
"""

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from storyrec.config import Config, config_from_json
from storyrec.errors import EXIT_CODE, StoryrecError
from storyrec.progress import PROGRESS_FOLDER
from storyrec.storage import Storage, open_storage, write_file

ERROR_FILE = "STORYREC_ERROR"
"""Names the file where a failed component leaves its message for the local run."""

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def step_process(step: str, config_json: str) -> Iterator[Config]:
    """Run one step in this process; a StoryrecError ends it with the message alone and exit code 2.

    The process ends with the one that started it, and a watching `storyrec run` sees the step's name.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    shown = _show(step)
    try:
        yield config_from_json(config_json)
    except StoryrecError as error:
        if place := os.environ.get(ERROR_FILE):
            parts = {"found": error.found, "expected": error.expected, "where": error.where, "remedy": error.remedy}
            write_file(Path(place), json.dumps(parts).encode())
        print(f"storyrec: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
    finally:
        if shown is not None:
            shown.unlink(missing_ok=True)


def folder_or_none(path: str | Path) -> Path | None:
    """A folder that an earlier component filled; None where it left it empty."""
    folder = Path(path)
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def run_storage(config: Config, *, day: date) -> tuple[Storage, str]:
    """The working storage, and the prefix of everything that a day's run leaves there."""
    locations = config.locations
    return open_storage(locations.work, s3_endpoint=locations.s3_endpoint), f"runs/dt={day.isoformat()}"


def open_checkpoints(config: Config, *, day: date) -> Storage:
    """Where the training steps of a day keep their checkpoints."""
    locations = config.locations
    return open_storage(f"{locations.work}/runs/dt={day.isoformat()}/checkpoints", s3_endpoint=locations.s3_endpoint)


@contextlib.contextmanager
def judged_folder(config: Config, *, evaluation: Path, verdict: Path) -> Iterator[Path]:
    """A copy of the evaluation whose report also tells the verdict and how the day's logs were judged."""
    from storyrec.logs.reports import read_report
    from storyrec.report import render_report

    judged = json.loads((evaluation / "evaluation.json").read_bytes())
    storage, _ = run_storage(config, day=date.fromisoformat(judged["day"]))
    validation = None
    with contextlib.suppress(StoryrecError):  # the page is for reading: a damaged report does not stop a deployment
        validation = read_report(storage, date.fromisoformat(judged["day"]))
    with tempfile.TemporaryDirectory(prefix="storyrec-") as scratch:
        folder = Path(scratch) / "evaluation"
        shutil.copytree(evaluation, folder)
        report = render_report(
            folder,
            verdict=json.loads((verdict / "verdict.json").read_bytes()),
            validation=validation.model_dump(mode="json") if validation else None,
        )
        write_file(folder / "report.html", report.encode())
        yield folder


def flat_figures(evaluation: Path) -> dict[str, float]:
    """The finite figures of evaluation.json by names such as `challenger_per_user_auc`, for the Pipelines UI.

    Kubeflow cannot carry a NaN: it would fail the run.
    """
    judged = json.loads((evaluation / "evaluation.json").read_bytes())
    return {
        f"{model}_{name}": float(value)
        for model in ("challenger", "champion", "oracle", "popularity")
        for name, value in ((judged.get(model) or {}).get("metrics") or {}).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def verdict_markdown(verdict: Path) -> str:
    """The verdict with its reasons, for the Pipelines UI."""
    judged: dict[str, Any] = json.loads((verdict / "verdict.json").read_bytes())
    reasons = "\n".join(f"* {reason}" for reason in judged["reasons"])
    return f"# {'Blessed' if judged['blessed'] else 'Not blessed'}\n\n{reasons}\n"


def is_blessed(verdict: Path) -> bool:
    """Whether verdict.json says, in so many words, that the challenger is blessed."""
    try:
        return json.loads((verdict / "verdict.json").read_bytes())["blessed"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _show(step: str) -> Path | None:
    folder = os.environ.get(PROGRESS_FOLDER)
    if not folder or not Path(folder).is_dir():
        return None
    file = Path(folder) / f"{step}.json"
    with contextlib.suppress(OSError):
        file.write_text(json.dumps({"name": step, "total": 0, "done": 0, "note": ""}))
    return file
