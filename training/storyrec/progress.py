"""How far a long step is: a bar for a person at a terminal, a small file for whoever watches a run.

A watching process (`storyrec run`) names a folder in STORYREC_PROGRESS; each step keeps one JSON
file there, replaced atomically at most twice a second.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PROGRESS_FOLDER = "STORYREC_PROGRESS"
WRITE_INTERVAL_SECONDS = 0.5


@dataclass
class Tracker:
    """The handle a step advances; `note` is a short free text such as the current loss."""

    name: str
    total: float
    done: float = 0.0
    note: str = ""
    _bar: Progress | None = None
    _file: Path | None = None
    _written_at: float = field(default=-1e9)

    def advance(self, amount: float = 1.0, *, note: str | None = None) -> None:
        """Say that `amount` more of `total` is done."""
        self.done += amount
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=self.note)
        if self._file is not None and time.monotonic() - self._written_at > WRITE_INTERVAL_SECONDS:
            self._write()

    def _write(self) -> None:
        assert self._file is not None
        self._written_at = time.monotonic()
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        state = {"name": self.name, "total": self.total, "done": self.done, "note": self.note}
        try:
            temporary.write_text(json.dumps(state))
            temporary.replace(self._file)
        except OSError:
            self._file = None  # watching is a convenience: a step never fails for it


@contextmanager
def track(name: str, *, total: float) -> Iterator[Tracker]:
    """Show the progress of a step called `name` until the block ends.

    Args:
        name: the step, in the project's words, such as "pretrain_dual".
        total: the amount of work, in whatever unit the step advances by.
    """
    folder = os.environ.get(PROGRESS_FOLDER)
    tracker = Tracker(name, total)
    if folder and Path(folder).is_dir():
        tracker._file = Path(folder) / f"{name}.json"
        tracker._write()
    if sys.stderr.isatty():
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task(name, total=total, note="")
            tracker._bar = bar
            yield tracker
    else:
        yield tracker
    if tracker._file is not None:
        tracker._file.unlink(missing_ok=True)
