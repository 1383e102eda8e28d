"""`storyrec run`: which logs and days it takes, and a real Airflow that takes days through the DAGs."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console

from storyrec.airflow_local import AirflowLocal, _is_supervisor, _marked
from storyrec.config import Config, Locations, Simulate
from storyrec.drive import _alone, _message, day_is_done, run_days
from storyrec.errors import MissingPartition, PlatformError
from storyrec.run import simulated_days, with_data

DAYS = (date(2026, 3, 9), date(2026, 3, 10))
DRIVER = """
import sys
from datetime import date
from rich.console import Console
from storyrec.config import Airflow, Config, Locations
from storyrec.drive import run_days
from storyrec.errors import StoryrecError
config = Config(airflow=Airflow(port=int(sys.argv[1])), locations=Locations(work="working"))
try:
    run_days(config, days=[date.fromisoformat(day) for day in sys.argv[2:]], console=Console(width=150))
except StoryrecError as error:
    print(f"storyrec: {error}")
    sys.exit(2)
"""
STEPS = """#!/bin/sh
# in the place of the interpreter that has the steps: each leaves the marker that the real one leaves
step=$3 day=$5
echo "$step $day" >> {root}/called
if [ -f {root}/hold-$step ]; then echo up > {root}/held; exec sleep 600; fi
if [ -f {root}/refuse-$step ]; then echo "storyrec: the day is bad"; echo "  where: here"; exit 2; fi
leave() {{ mkdir -p $(dirname $1); echo '{{}}' > $1; }}
if [ "$step" = train-adapt ]; then leave {root}/working/runs/dt=$day/outcome.json; fi
if [ "$step" = publish-features ]; then leave {root}/working/features/published/dt=$day.json; fi
"""


def write_impressions(root: Path, *days: date) -> None:
    for day in days:
        file = root / f"impressions/dt={day}/part-0.parquet"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")


def test_the_simulated_days_are_the_last_two() -> None:
    assert simulated_days(Config()) == DAYS
    assert simulated_days(Config(simulate=Simulate(num_days=3, first_day="2026-02-27"))) == (
        date(2026, 2, 28),
        date(2026, 3, 1),
    )


def test_own_logs_get_places_of_their_own(tmp_path: Path) -> None:
    write_impressions(tmp_path / "a" / "out", *DAYS)
    write_impressions(tmp_path / "b" / "out", *DAYS)
    first, second = (with_data(Config(), data=tmp_path / name / "out").locations for name in "ab")
    assert first.logs == str(tmp_path / "a" / "out")
    assert first.truth == ""
    assert len({first.work, second.work, Locations().work}) == 3
    assert len({first.registry, second.registry, Locations().registry}) == 3
    chosen = Config(locations=Locations(work="w", registry="r"))
    kept = with_data(chosen, data=tmp_path / "a" / "out").locations
    assert (kept.work, kept.registry) == ("w", "r")


def test_data_that_points_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPartition, match="nowhere"):
        with_data(Config(), data=tmp_path / "nowhere")


def test_a_day_is_done_when_it_is_decided_and_published(tmp_path: Path) -> None:
    config = Config(locations=Locations(work=str(tmp_path)))
    assert not day_is_done(config, day=DAYS[0])
    for key in ("runs/dt=2026-03-09/outcome.json", "features/published/dt=2026-03-09.json"):
        assert not day_is_done(config, day=DAYS[0])
        (tmp_path / key).parent.mkdir(parents=True)
        (tmp_path / key).write_text("{}")
    assert day_is_done(config, day=DAYS[0])
    # done days need no Airflow: nothing is started, nothing written
    run_days(config, days=[DAYS[0]], console=Console(), meanwhile=lambda: pytest.fail("there is nothing to do"))


def test_the_message_of_a_step_is_found_in_its_log() -> None:
    log = ["storyrec: old", "noise", "storyrec: the day is bad", "  where: here", "Traceback"]
    assert _message(log) == "  the day is bad\n  where: here"
    assert _message(["boom"]) == "  boom"
    assert _message([]) == "  its log is empty"


def test_two_drivers_do_not_run_at_once(tmp_path: Path) -> None:
    airflow = AirflowLocal(tmp_path / "airflow", dags=tmp_path)
    with _alone(airflow), pytest.raises(PlatformError, match="another"), _alone(airflow):
        pytest.fail("it was let in")
    with _alone(airflow):
        pass


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "steps").write_text(STEPS.format(root=tmp_path))
    (tmp_path / "steps").chmod(0o755)
    yield tmp_path
    AirflowLocal(tmp_path / "var" / "airflow", dags=tmp_path).kill()


def drive(root: Path, *days: date, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(port), *map(str, days)],
        cwd=root,
        env={**os.environ, "STORYREC_PYTHON": str(root / "steps"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_end(pid: int) -> None:
    """Return when a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        select.select([handle], [], [], 60)
        os.close(handle)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_days_go_through_the_dags_survive_a_kill_and_stop_at_bad_input(root: Path) -> None:
    airflow = AirflowLocal(root / "var" / "airflow", dags=root)
    port = free_port()

    # killed in the middle of a step: everything ends with the driver
    os.mkfifo(root / "held")
    (root / "hold-build-features").touch()
    driver = drive(root, *DAYS, port=port)
    assert (root / "held").read_text() == "up\n"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    supervisor = next(pid for pid in _marked(airflow.home) if _is_supervisor(pid))
    wait_for_end(supervisor)
    assert not airflow.running()
    (root / "hold-build-features").unlink()
    (root / "called").unlink()

    # the same command again finishes both days, in order, each step once
    driver = drive(root, *DAYS, port=port)
    said, _ = driver.communicate()
    assert driver.returncode == 0, said
    steps = ["catch-up", "validate-logs", "build-features", "materialize-features", "embed-covers"]
    steps += ["train-adapt", "publish-features"]
    # nobody waits for `features_slo`, whose steps are `features freshness` and `features drift`, nor for `rollout`,
    # whose steps are of no day
    lines = (root / "called").read_text().splitlines()
    called = [line for line in lines if line.split()[-1] in map(str, DAYS) and not line.startswith("features ")]
    assert called == [f"{step} {day}" for day in DAYS for step in steps]
    assert "2026-03-10  publish_features.publish  success" in said
    assert not airflow.running()

    # bad input: its message, exit code 2, no retry, Airflow stopped
    (root / "called").unlink()
    (root / "refuse-validate-logs").touch()
    driver = drive(root, date(2026, 3, 11), port=port)
    said, _ = driver.communicate()
    assert driver.returncode == 2, said
    assert "  the day is bad\n  where: here" in said
    assert (root / "called").read_text().count("validate-logs") == 1
    assert not airflow.running()
    assert json.loads((root / "var/airflow/passwords.json").read_text())
