"""What a task does: run its step in a process, say why it failed, find lost days, alert."""

import json
import logging
import os
import signal
import threading
import time
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from storyrec.config import Config, Locations, save_config
from storyrec_tasks import Step, StepOperator, alert, partition_day, unconsumed_days

DAY = date(2026, 3, 9)
NOW = datetime(2026, 3, 12, 5, 30, tzinfo=UTC)


def context(key: str | None) -> Any:
    return {"dag_run": SimpleNamespace(partition_key=key)}


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of the interpreter that has the steps; a test writes its body."""
    program = tmp_path / "interpreter"
    monkeypatch.setenv("STORYREC_PYTHON", str(program))
    monkeypatch.setenv("STORYREC_CONFIG", "/settings.toml")
    return program


def write(program: Path, body: str) -> None:
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("step", ["validate-logs", "features drift"])
def test_a_step_is_a_command_with_day_and_settings(
    interpreter: Path, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    write(interpreter, "echo got; printf '%s\\n' \"$@\"")
    with caplog.at_level(logging.INFO):
        StepOperator(task_id="validate", step=step).execute(context("2026-03-09"))
    words = ["-m", "storyrec.cli", *step.split(), "--day", "2026-03-09", "--config", "/settings.toml"]
    assert caplog.messages[caplog.messages.index("got") + 1 :] == words


def test_bad_input_is_not_tried_again_and_its_message_is_shown(interpreter: Path) -> None:
    write(interpreter, "echo noise; echo 'storyrec: the day is empty'; echo '  where: here' >&2; exit 2")
    with pytest.raises(AirflowFailException) as caught:
        Step("validate-logs", day=DAY).run()
    assert str(caught.value) == "storyrec: the day is empty\n  where: here"


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_a_broken_step_is_tried_again(interpreter: Path, end: str) -> None:
    write(interpreter, f"echo last words; {end}")
    with pytest.raises(AirflowException, match="last words") as caught:
        Step("validate-logs", day=DAY).run()
    assert not isinstance(caught.value, AirflowFailException)


def test_a_killed_task_ends_the_step_and_its_children(interpreter: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pids")
    write(interpreter, f'sleep 600 & echo "$$ $!" > {tmp_path}/pids; wait')
    operator = StepOperator(task_id="validate", step="validate-logs")
    ended: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(context("2026-03-09"))
        except AirflowException as error:
            ended.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    operator.on_kill()
    thread.join(timeout=30)
    assert len(ended) == 1
    assert str(-signal.SIGTERM) in str(ended[0])
    give_up_at = time.monotonic() + 10  # the kernel takes its time to end a signalled process
    while (alive := [pid for pid in pids if runs(pid)]) and time.monotonic() < give_up_at:
        os.sched_yield()
    assert not alive


def test_a_task_killed_while_its_step_starts_ends_it_too(interpreter: Path) -> None:
    write(interpreter, "sleep 600")
    step = Step("validate-logs", day=DAY)
    step.end()
    with pytest.raises(AirflowException, match=str(-signal.SIGTERM)):
        step.run()


def runs(pid: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_day_is_the_partition_key() -> None:
    assert partition_day(context("2026-03-09")) == DAY


@pytest.mark.parametrize("key", [None, "", "yesterday", "2026-02-30"])
def test_a_run_without_a_day_fails_with_a_hint(key: str | None) -> None:
    with pytest.raises(AirflowFailException, match="partition key"):
        partition_day(context(key))


def event(key: str | None, *, hours_ago: float, started: bool = False) -> Any:
    return SimpleNamespace(
        partition_key=key,
        timestamp=NOW - timedelta(hours=hours_ago),
        created_dagruns=[SimpleNamespace(state="failed")] if started else [],
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_config(Config(locations=Locations(work=str(tmp_path / "work"))), tmp_path / "settings.toml")
    monkeypatch.setenv("STORYREC_CONFIG", str(tmp_path / "settings.toml"))
    return tmp_path / "work"


def lost(*events: Any) -> list[date]:
    return unconsumed_days(
        events, marker="features/dt={day}.json", now=NOW, grace=timedelta(hours=1), look_back=timedelta(days=30)
    )


def test_a_lost_day_is_found(work: Path) -> None:
    assert lost(event("2026-03-10", hours_ago=30), event("2026-03-09", hours_ago=54)) == [DAY, date(2026, 3, 10)]


def test_days_that_need_nothing(work: Path) -> None:
    assert lost(event("2026-03-09", hours_ago=30, started=True)) == []
    assert lost(event("2026-03-09", hours_ago=30), event("2026-03-09", hours_ago=2, started=True)) == []
    assert lost(event("2026-03-09", hours_ago=0.5)) == []
    assert lost(event("2026-01-01", hours_ago=31 * 24)) == []
    assert lost(event(None, hours_ago=30)) == []


def test_a_day_that_was_consumed_by_hand_is_not_lost(work: Path) -> None:
    (work / "features").mkdir(parents=True)
    (work / "features/dt=2026-03-09.json").write_text("{}")
    assert lost(event("2026-03-09", hours_ago=30)) == []


def failed_context() -> Any:
    instance = SimpleNamespace(dag_id="validate_logs", task_id="validate", run_id="run-1", try_number=1)
    return {**context("2026-03-09"), "task_instance": instance, "exception": AirflowException("the day is empty")}


def test_an_alert_is_logged_and_posted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    monkeypatch.setenv("STORYREC_ALERT_URL", f"http://127.0.0.1:{server.server_port}/hook")
    alert(failed_context())
    thread.join(timeout=30)
    server.server_close()
    assert received == [
        {
            "dag": "validate_logs",
            "task": "validate",
            "day": "2026-03-09",
            "run": "run-1",
            "try": 1,
            "error": "the day is empty",
        }
    ]
    assert "ALERT validate_logs.validate failed for day 2026-03-09" in caplog.text


def test_an_alert_that_cannot_be_posted_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STORYREC_ALERT_URL", "http://127.0.0.1:1/hook")
    alert(failed_context())
    assert "could not be posted" in caplog.text
