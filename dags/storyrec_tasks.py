"""What the DAGs share: the assets, the frame, the alert, and the operator that runs one step.

A task runs its step in another process, `$STORYREC_PYTHON -m storyrec.cli <step> --day D`, so that
Airflow's environment needs nothing of the machine-learning stack. Environment variables:

    STORYREC_PYTHON      interpreter that has the steps; default: Airflow's own
    STORYREC_CONFIG      settings file of every step; default: all defaults
    STORYREC_ALERT_URL   a failed task is posted there as JSON; default: it is only logged
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

log = logging.getLogger(__name__)

VALIDATED_LOGS = Asset("validated_logs", uri="storyrec://validated_logs")
FEATURES = Asset("features", uri="storyrec://features")
MODEL = Asset("model", uri="storyrec://model")
PUBLISHED_FEATURES = Asset("published_features", uri="storyrec://published_features")

REPORTS = "/storyrec/reports"
"""Where Airflow's server shows the reports, a page a day."""

USER_ERROR_EXIT_CODE = 2  # storyrec.errors.EXIT_CODE: another try would meet the same bad input
SECONDS_TO_END = 10
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def alert(context: Context) -> None:
    """Say that a task has failed for good: in the log and, if STORYREC_ALERT_URL is set, to that address."""
    instance = context["task_instance"]
    message = {
        "dag": instance.dag_id,
        "task": instance.task_id,
        "day": context["dag_run"].partition_key,
        "run": instance.run_id,
        "try": instance.try_number,
        "error": str(context.get("exception", "")),
    }
    log.error("ALERT %(dag)s.%(task)s failed for day %(day)s (run %(run)s, try %(try)s): %(error)s", message)
    if url := os.environ.get("STORYREC_ALERT_URL"):
        import httpx

        try:
            httpx.post(url, json=message, timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            log.error("the alert could not be posted to STORYREC_ALERT_URL: %s", error)


DEFAULT_ARGS: dict[str, Any] = {
    "owner": "storyrec",
    "retries": 2,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=15),
    "execution_timeout": timedelta(hours=6),
    "on_failure_callback": alert,
}


def one_run_at_a_time(name: str, *, description: str, schedule: Any, about: str, triage: str) -> DAG:
    """A DAG whose runs follow one another, and whose failures are alerted.

    Args:
        schedule: a timetable.
        about: its tag beside storyrec.
        triage: what it asks, and what to do when a task failed; Markdown.
    """
    return DAG(
        name,
        description=description,
        schedule=schedule,
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULT_ARGS,
        tags=["storyrec", about],
        doc_md=triage,
    )


def partition_day(context: Context) -> date:
    """The day a run is for: its partition key.

    Raises:
        AirflowFailException: the run has no partition key, or one that is no day.
    """
    key = context["dag_run"].partition_key
    try:
        return date.fromisoformat(key or "")
    except ValueError:
        raise AirflowFailException(
            f"the run's partition key is {key!r}, expected a day YYYY-MM-DD: trigger the DAG with a partition key"
        ) from None


def settings_file() -> Path | None:
    """The file that STORYREC_CONFIG names."""
    name = os.environ.get("STORYREC_CONFIG")
    return Path(name) if name else None


def unconsumed_days(
    events: Iterable[Any], *, marker: str, now: datetime, grace: timedelta, look_back: timedelta
) -> list[date]:
    """Days of an asset that were produced and that nobody consumed, oldest first.

    A day is consumed when one of its events started a run, whatever became of that run (a failed one has been
    alerted), or when the consumer's marker is in the working storage (somebody ran the step by hand).

    Args:
        events: events of one asset, with `partition_key`, `timestamp` and `created_dagruns`.
        marker: key in the working storage that the consumer writes last; `{day}` stands for the day.
        now: an aware time.
        grace: events younger than this are still on their way.
        look_back: events older than this are history.
    """
    announced, started = set(), set()
    for event in events:
        if event.partition_key is None or event.timestamp < now - look_back:
            continue
        if event.created_dagruns:
            started.add(event.partition_key)
        elif event.timestamp <= now - grace:
            announced.add(event.partition_key)
    lost = sorted(announced - started)
    if not lost:
        return []

    from storyrec.config import load_config
    from storyrec.storage import open_storage

    locations = load_config(settings_file()).locations
    work = open_storage(locations.work, s3_endpoint=locations.s3_endpoint)
    return [date.fromisoformat(key) for key in lost if not work.exists(marker.format(day=key))]


class Step:
    """One step, of a day or of now, as a process; its output goes to the task's log line by line."""

    def __init__(self, name: str, *, day: date | None) -> None:
        self.name = name
        self._command = [os.environ.get("STORYREC_PYTHON") or sys.executable, "-m", "storyrec.cli", *name.split()]
        if day is not None:
            self._command += ["--day", day.isoformat()]
        if (settings := settings_file()) is not None:
            self._command += ["--config", str(settings)]
        self._process: subprocess.Popen[str] | None = None
        self._is_ended = False

    def run(self) -> None:
        """Run the step to its end.

        Raises:
            AirflowFailException: the step refuses its input; trying again would not help.
            AirflowException: the step broke; Airflow tries again.
        """
        log.info("running %s", " ".join(self._command))
        lines: list[str] = []
        with subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            process_group=0,
            preexec_fn=_die_with_parent,
        ) as process:
            self._process = process
            if self._is_ended:  # while it was being started
                self.end()
            assert process.stdout is not None
            for line in process.stdout:
                log.info("%s", line.rstrip())
                lines = [*lines[-19:], line.rstrip()]
            code = process.wait()
        if code == USER_ERROR_EXIT_CODE:
            raise AirflowFailException(_message(lines))
        if code != 0:
            raise AirflowException(f"{self.name} ended with exit code {code}; its last lines:\n" + "\n".join(lines))

    def end(self) -> None:
        """End the step and every process it started."""
        self._is_ended = True
        if self._process is None or self._process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=SECONDS_TO_END)
                return


class StepOperator(BaseOperator):
    """Runs one step of the command line, for the day of the run unless it is none of a day."""

    template_fields: Sequence[str] = ()

    def __init__(self, *, step: str, of_day: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step, self.of_day = step, of_day
        self._running: Step | None = None

    def execute(self, context: Context) -> None:
        """Run the step; its output is in the log of the task."""
        self._running = Step(self.step, day=partition_day(context) if self.of_day else None)
        self._running.run()

    def on_kill(self) -> None:
        """End the step's processes when the task is stopped from outside."""
        if self._running is not None:
            self._running.end()


def _message(lines: Sequence[str]) -> str:
    """The message of a StoryrecError in a step's last lines: from its head on, or all of them."""
    heads = [number for number, line in enumerate(lines) if line.startswith("storyrec: ")]
    return "\n".join(lines[heads[-1] if heads else 0 :])


def _die_with_parent() -> None:
    """Let the kernel end this process when the task's process dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
