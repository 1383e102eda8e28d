"""What a person without a terminal reads while days run."""

import io
import json
from pathlib import Path

from rich.console import Console

from storyrec.watch import RunningStep, Screen, read_steps


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100), out


def test_one_line_a_change() -> None:
    console, out = plain()
    step = RunningStep("pretrain_dual", 100, 10, "loss 0.5")
    with Screen(console) as screen:
        screen.begin_day("2026-03-09")
        screen.show("train_adapt", None, None, [])
        screen.show("train_adapt", "queued", None, [])
        screen.show("train_adapt", "running", None, [step])
        screen.show("train_adapt", "running", None, [step])
        screen.show("train_adapt", "success", 75.2, [])
        screen.begin_day("2026-03-10")
        screen.show("train_adapt", "running", None, [step])
    assert out.getvalue().splitlines() == [
        "2026-03-09  train_adapt  running",
        "2026-03-09  train_adapt  pretrain_dual ...",
        "2026-03-09  train_adapt  success in 1:15",
        "2026-03-10  train_adapt  running",
        "2026-03-10  train_adapt  pretrain_dual ...",
    ]


def test_a_terminal_shows_the_running_step_and_keeps_the_day_before() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Screen(console) as screen:
        screen.begin_day("2026-03-09")
        screen.show("train_adapt", "running", None, [RunningStep("pretrain_dual", 200, 50, "loss 0.5")])
        assert screen._live is not None
        screen._live.refresh()
        running = out.getvalue()
        screen.show("train_adapt", "success", 75.2, [])
        screen.begin_day("2026-03-10")
    for part in ("Day 2026-03-09", "train_adapt", "pretrain_dual", "25%", "loss 0.5"):
        assert part in running
    assert "1:15" in out.getvalue()


def test_steps_are_read_from_their_files_and_damaged_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"name": "b", "total": 4, "done": 1, "note": "x"}))
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "c.json").write_text("[]")
    assert read_steps(tmp_path) == [RunningStep("b", 4.0, 1.0, "x")]
    assert read_steps(tmp_path / "missing") == []
