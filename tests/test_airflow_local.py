"""The local Airflow's processes and folder, without starting Airflow."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storyrec.airflow_local import DATABASE, MARK, AirflowLocal, absolute
from storyrec.config import Airflow, Config, Covers, Locations
from storyrec.errors import ConfigError, PlatformError

DAGS = Path(__file__).parents[1] / "dags"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def airflow(tmp_path: Path) -> Iterator[AirflowLocal]:
    local = AirflowLocal(tmp_path / "airflow", dags=DAGS)
    yield local
    local.kill()


def spawn(home: Path, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARK: str(home)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_every_marked_process_is_ended_and_no_other(
    airflow: AirflowLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storyrec.airflow_local.SECONDS_TO_END", 0.2)
    polite = spawn(airflow.home, "import signal; print('up', flush=True); signal.pause()")
    stubborn = spawn(airflow.home, STUBBORN)
    other = spawn(tmp_path / "other", "import signal; print('up', flush=True); signal.pause()")
    assert airflow.running()
    airflow.stop(clean=True)
    assert (polite.wait(timeout=30), stubborn.wait(timeout=30)) == (-signal.SIGTERM, -signal.SIGKILL)
    assert not airflow.running()
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_taken_port_is_said_before_anything_is_touched(airflow: AirflowLocal) -> None:
    airflow.home.mkdir()
    (airflow.home / DATABASE).write_text("history")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=f"port {port} is taken"):
            airflow.start(Config(airflow=Airflow(port=port)), watched=True, keep_history=False)
    assert (airflow.home / DATABASE).read_text() == "history"
    assert not airflow.running()


def test_without_a_checkout_there_are_no_dags(tmp_path: Path) -> None:
    airflow = AirflowLocal(tmp_path / "airflow", dags=tmp_path)
    with pytest.raises(ConfigError, match="no DAG files"):
        airflow.start(Config(), watched=True, keep_history=False)


def test_the_password_is_made_once_and_only_its_owner_reads_it(airflow: AirflowLocal) -> None:
    login = airflow.login(8000)
    assert login.url == "http://127.0.0.1:8000"
    assert len(login.password) >= 12
    assert airflow.login(8000) == login
    assert (airflow.home / "passwords.json").stat().st_mode & 0o777 == 0o600


def test_locations_are_spelled_out_for_processes_that_start_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    locations = Locations(logs="s3://bucket/logs", truth="", work="work", registry="/registry", s3_endpoint="http://s3")
    covers = Covers(model="resnet.onnx", picture_folder="pictures")
    found = absolute(Config(locations=locations, covers=covers))
    assert found.locations == Locations(
        logs="s3://bucket/logs", work=str(tmp_path / "work"), registry="/registry", truth="", s3_endpoint="http://s3"
    )
    assert found.covers == Covers(model=str(tmp_path / "resnet.onnx"), picture_folder=str(tmp_path / "pictures"))
    assert absolute(Config()).covers == Covers()
