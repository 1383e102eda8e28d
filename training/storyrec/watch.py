"""What a person sees while days go through the DAGs: a live picture, or one line a change without a terminal."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MARKS = {"success": "[green]✓[/]", "failed": "[red]✗[/]", "running": "[yellow]▶[/]", "up_for_retry": "[yellow]↻[/]"}
QUIET = frozenset({None, "scheduled", "queued", "none"})


@dataclass(frozen=True)
class RunningStep:
    """How far a step is; `total` 0 means that it does not count."""

    name: str
    total: float
    done: float
    note: str


def read_steps(folder: Path) -> list[RunningStep]:
    """The steps that run now, as they wrote it to the folder of STORYREC_PROGRESS."""
    steps = []
    for file in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(file.read_text())
            steps.append(RunningStep(state["name"], float(state["total"]), float(state["done"]), str(state["note"])))
    return steps


@dataclass
class _Shown:
    """One task on the screen."""

    name: str
    state: str | None
    started_at: float
    seconds: float | None = None


@dataclass
class Screen:
    """Shows what runs now. Use as a context manager."""

    console: Console
    _day: str = ""
    _tasks: dict[str, _Shown] = field(default_factory=dict)
    _steps: Sequence[RunningStep] = ()
    _named: set[tuple[str, str]] = field(default_factory=set)
    _live: Live | None = None

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps = ()
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False)

    def begin_day(self, day: str) -> None:
        """Start a new picture; the one of the day before stays above it."""
        if self._live is not None and self._day:
            self._steps = ()
            self._live.refresh()
            self.console.print(self._picture())
        self._day, self._tasks, self._steps = day, {}, ()

    def show(self, name: str, state: str | None, seconds: float | None, steps: Sequence[RunningStep]) -> None:
        """Take in how a task stands.

        Args:
            name: dag and task.
            state: Airflow's word for it.
            seconds: how long it took, once it has ended.
            steps: what runs now; belongs to the running task.
        """
        now = time.monotonic()
        shown = self._tasks.get(name)
        if state in QUIET and shown is None:
            return
        self._steps = steps
        if shown is None:
            shown = self._tasks[name] = _Shown(name, None, now)
        changed, shown.state, shown.seconds = shown.state != state, state, seconds
        if changed and state == "running":
            shown.started_at = now
        if self._live is not None:
            return
        if changed and state not in QUIET:
            took = f" in {_clock(seconds)}" if state in ("success", "failed") and seconds is not None else ""
            self.say(f"{self._day}  {name}  {state}{took}")
        for step in steps:
            if state == "running" and (self._day, step.name) not in self._named:
                self._named.add((self._day, step.name))
                self.say(f"{self._day}  {name}  {step.name} ...")

    def _picture(self) -> RenderableType:
        if not self._day:
            return Text("")
        table = Table.grid(padding=(0, 2))
        for shown in self._tasks.values():
            ended = shown.state in ("success", "failed")
            seconds = shown.seconds if ended and shown.seconds is not None else time.monotonic() - shown.started_at
            table.add_row(MARKS.get(shown.state or "", "·"), shown.name, _clock(seconds))
            if shown.state == "running":
                for step in self._steps:
                    table.add_row("", f"  {step.name}", _share(step), _bar(step), step.note)
        return Group(Text(f"Day {self._day}", style="bold"), table)


def _bar(step: RunningStep) -> RenderableType:
    if step.total <= 0:
        return ProgressBar(total=None, pulse=True, width=30)
    return ProgressBar(total=step.total, completed=step.done, width=30)


def _share(step: RunningStep) -> str:
    return f"{min(step.done / step.total, 1):.0%}" if step.total > 0 else ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
