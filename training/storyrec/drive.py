"""Take days through the DAGs of the local Airflow, one after the other, while a person watches.

A day is done when its outcome and its publication are on the disk, and a done day is not run again. So a killed
command is simply given again: what Airflow remembers of the killed run is thrown away, and the steps find what they
had finished.
"""

import contextlib
import fcntl
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

from rich.console import Console

from storyrec.airflow_api import AirflowApi, DagRun, TaskRun
from storyrec.airflow_local import AirflowLocal, Login, absolute
from storyrec.config import Config
from storyrec.errors import PlatformError, StoryrecError
from storyrec.storage import open_storage
from storyrec.watch import Screen, read_steps

CHAIN = ("validate_logs", "build_features", "train_adapt", "publish_features")
DAGS = frozenset({*CHAIN, "reconcile", "features_slo", "rollout"})
HOME = Path("var/airflow")
START_SECONDS = 300.0
HOP_SECONDS = 120.0  # from the end of one DAG to the run of the next
POLL_SECONDS = 0.7


def run_days(
    config: Config, *, days: Sequence[date], console: Console, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Run days through the four DAGs, in order.

    Args:
        config: settings of every step.
        days: partition keys; those that are done are left out.
        meanwhile: work to do before the first day, while Airflow comes up.

    Raises:
        StoryrecError: what the failed step said; Airflow is stopped.
        PlatformError: Airflow cannot be started, or another command is running days.
    """
    waiting = [day for day in days if not day_is_done(config, day=day)]
    if not waiting:
        return
    airflow = local_airflow()
    with _terminable(), _alone(airflow), _running(airflow, config) as login:
        meanwhile()
        with AirflowApi(login.url, user=login.user, password=login.password) as api:
            _wait_until_up(airflow, api, console)
            with Screen(console) as screen:
                for day in waiting:
                    _run_day(api, day, screen, airflow.progress)


def day_is_done(config: Config, *, day: date) -> bool:
    """Whether a day went through all DAGs: its outcome and its publication are on the disk."""
    work = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    key = day.isoformat()
    return work.exists(f"runs/dt={key}/outcome.json") and work.exists(f"features/published/dt={key}.json")


def start_airflow(config: Config, *, console: Console) -> Login:
    """Start the local Airflow and leave it running, with the history of before.

    Raises:
        PlatformError: the port is taken, or Airflow does not come up.
    """
    airflow = local_airflow()
    with _alone(airflow):
        if not airflow.left_running():
            airflow.start(config, watched=False, keep_history=True)
        elif airflow.running_config() != absolute(config):
            raise _other_settings(airflow)
        login = airflow.login(config.airflow.port)
        try:
            with AirflowApi(login.url, user=login.user, password=login.password) as api:
                _wait_until_up(airflow, api, console)
        except BaseException:
            airflow.stop(clean=False)
            raise
    return login


def stop_airflow() -> bool:
    """Stop the local Airflow with all its processes; False where none was running."""
    airflow = local_airflow()
    if not airflow.running():
        return False
    airflow.stop(clean=False if not airflow.left_running() else _idle(airflow))
    return True


def local_airflow() -> AirflowLocal:
    """The Airflow of the current folder, with the DAGs of the source checkout."""
    return AirflowLocal(HOME, dags=Path(__file__).parents[2] / "dags")


@contextlib.contextmanager
def _running(airflow: AirflowLocal, config: Config) -> Iterator[Login]:
    """An Airflow that runs inside of the block; one that was up before stays up."""
    if airflow.left_running():
        if airflow.running_config() != absolute(config):
            raise _other_settings(airflow)
        yield airflow.login(config.airflow.port)
        return
    login = airflow.start(config, watched=True, keep_history=False)
    clean = False
    try:
        yield login
        clean = True
    except StoryrecError:
        clean = True  # the failed run has ended
        raise
    finally:
        airflow.stop(clean=clean)


def _wait_until_up(airflow: AirflowLocal, api: AirflowApi, console: Console) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    with console.status("Airflow is starting ..."):
        while not (api.answers() and api.dag_ids() >= DAGS):
            if failure := airflow.failure():
                raise PlatformError(
                    f"Airflow did not start:\n{failure}",
                    where=str(airflow.home),
                    remedy="mend this, then run the same command again",
                )
            if time.monotonic() > give_up_at:
                errors = "\n".join(api.import_errors()) if api.answers() else "its API does not answer"
                raise PlatformError(
                    f"Airflow was not ready after {START_SECONDS:.0f} seconds: {errors}",
                    where=str(airflow.home),
                    remedy="look at the logs there",
                )
            time.sleep(POLL_SECONDS)


def _run_day(api: AirflowApi, day: date, screen: Screen, progress: Path) -> None:
    key = day.isoformat()
    screen.begin_day(key)
    earlier = {run.run_id for dag_id in CHAIN for run in api.dag_runs(dag_id, key=key)}
    api.trigger(CHAIN[0], key=key)
    for dag_id in CHAIN:
        _follow(api, _new_run(api, dag_id, key=key, earlier=earlier), screen, progress)


def _new_run(api: AirflowApi, dag_id: str, *, key: str, earlier: set[str]) -> DagRun:
    give_up_at = time.monotonic() + HOP_SECONDS
    while time.monotonic() < give_up_at:
        if new := [run for run in api.dag_runs(dag_id, key=key) if run.run_id not in earlier]:
            return new[0]
        time.sleep(POLL_SECONDS)
    raise PlatformError(
        f"no run of {dag_id} began for {key}",
        expected=f"one within {HOP_SECONDS:.0f} seconds after the DAG before it",
        where=api.url,
        remedy="look whether the DAG is paused; `reconcile` starts lost partitions",
    )


def _follow(api: AirflowApi, run: DagRun, screen: Screen, progress: Path) -> None:
    """Show a run until it has ended.

    Raises:
        StoryrecError: the run failed; with the message of its step.
    """
    while True:
        ended = next((now for now in api.dag_runs(run.dag_id, key=run.key or "") if now.run_id == run.run_id), run)
        tasks = api.task_runs(run)
        steps = read_steps(progress)
        for task in sorted(tasks, key=lambda task: task.state != "success"):
            screen.show(_shown_name(run, task), task.state, task.seconds, steps)
        if ended.ended:
            break
        time.sleep(POLL_SECONDS)
    if ended.state == "failed":
        failed = next((task for task in tasks if task.state == "failed"), None)
        lines = api.log_lines(run, failed) if failed else []
        raise StoryrecError(
            f"{run.dag_id} failed for {run.key}{f' in its task {failed.task_id}' if failed else ''}:\n{_message(lines)}"
        )


def _shown_name(run: DagRun, task: TaskRun) -> str:
    return run.dag_id if task.task_id == run.dag_id else f"{run.dag_id}.{task.task_id}"


def _message(lines: Sequence[str]) -> str:
    """What the step said: its StoryrecError, or its last lines."""
    heads = [number for number, line in enumerate(lines) if line.startswith("storyrec: ")]
    if not heads:
        return "\n".join(f"  {line}" for line in lines[-15:]) or "  its log is empty"
    first = lines[heads[-1]].removeprefix("storyrec: ")
    rest = [line for line in lines[heads[-1] + 1 :] if line.startswith("  ")]
    return "\n".join([f"  {first}", *rest])


def _idle(airflow: AirflowLocal) -> bool:
    """Whether no run is going on; an API that does not answer counts as busy."""
    login = airflow.login(airflow.running_config().airflow.port)
    try:
        with AirflowApi(login.url, user=login.user, password=login.password) as api:
            return not api.any_running()
    except PlatformError:
        return False


@contextlib.contextmanager
def _alone(airflow: AirflowLocal) -> Iterator[None]:
    """One driver at a time; the kernel gives the place free when it dies."""
    airflow.home.mkdir(parents=True, exist_ok=True)
    with open(airflow.home / "driver.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PlatformError(
                "another `storyrec run` or `storyrec up` is at work in this folder",
                where=str(airflow.home),
                remedy="wait for its end, or stop it",
            ) from error
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let a SIGTERM end the command through its `finally` blocks."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _other_settings(airflow: AirflowLocal) -> PlatformError:
    return PlatformError(
        "Airflow is up already, with other settings",
        where=str(airflow.settings),
        remedy="stop it with `make down`, then run the same command again",
    )
