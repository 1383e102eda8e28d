"""The Airflow of one machine: its processes, its settings, its folder.

Scheduler, API server, DAG processor and (in the cluster profile) triggerer run below one supervisor,
as `airflow standalone` does, but in a session of their own, with little memory, and so that all of them
can be found and ended: every process carries the folder's name in its environment. The folder holds
nothing of value. After an unclean end its database is thrown away, because a killed scheduler leaves
tasks *running* that nobody runs.

    python -m storyrec.airflow_local HOME [--watched]     the supervisor itself; watched: ends with its parent
"""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from storyrec.config import Config, load_config, save_config
from storyrec.errors import ConfigError, PlatformError
from storyrec.progress import PROGRESS_FOLDER
from storyrec.storage import write_file

HOST = "127.0.0.1"
USER = "admin"
MARK = "STORYREC_AIRFLOW_HOME"
DATABASE = "airflow.db"
SECONDS_TO_END = 4.0
PARALLEL_TASKS = 2


@dataclass(frozen=True)
class Login:
    """Where the local Airflow answers, and who may enter."""

    url: str
    user: str
    password: str


class AirflowLocal:
    """The local Airflow that lives in one folder.

    Args:
        home: AIRFLOW_HOME, created when needed.
        dags: folder of the DAG files.
    """

    def __init__(self, home: Path, *, dags: Path) -> None:
        self.home, self.dags = home.resolve(), dags.resolve()
        self.progress = self.home / "progress"
        self.settings = self.home / "storyrec.toml"
        self._clean = self.home / "stopped-cleanly"
        self._left = self.home / "left-running"

    def start(self, config: Config, *, watched: bool, keep_history: bool) -> Login:
        """Start all processes; returns while they still come up.

        Args:
            config: settings of every step; relative locations count from the current folder.
            watched: end everything when this process ends, however it ends.
            keep_history: show the runs of before, if Airflow was stopped cleanly.

        Raises:
            PlatformError: the port is taken.
            ConfigError: there are no DAG files.
        """
        if not (self.dags / "validate_logs.py").is_file():
            raise ConfigError(
                "there are no DAG files beside the package",
                expected="a source checkout",
                where=str(self.dags),
                remedy="run this command from an editable installation of the checkout",
            )
        self.kill()  # what a killed earlier run left behind
        self._left.unlink(missing_ok=True)
        self._check_port(config.airflow.port)
        if not (keep_history and self._clean.exists()):
            self._throw_history_away()
        self._clean.unlink(missing_ok=True)
        shutil.rmtree(self.progress, ignore_errors=True)
        self.progress.mkdir(parents=True)
        save_config(absolute(config), self.settings)
        login = self.login(config.airflow.port)
        with open(self.home / "supervisor.log", "wb") as log:
            subprocess.Popen(
                [sys.executable, "-m", "storyrec.airflow_local", str(self.home), *(["--watched"] if watched else [])],
                env=self._environment(config, login),
                # the write end stays open in this process alone: the supervisor sees it close when we end
                stdin=_pipe_that_closes_with_us() if watched else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not watched:
            self._left.touch()
        return login

    def stop(self, *, clean: bool) -> None:
        """End every process.

        Args:
            clean: no run was going on, so the history may be kept for the next start.
        """
        self.kill()
        self._left.unlink(missing_ok=True)
        if clean and self.home.is_dir():
            self._clean.touch()

    def running(self) -> bool:
        """Whether any process of this Airflow lives."""
        return bool(_marked(self.home))

    def left_running(self) -> bool:
        """Whether it was started to stay, and its supervisor lives."""
        return self._left.exists() and any(_is_supervisor(pid) for pid in _marked(self.home))

    def running_config(self) -> Config:
        """The settings that the running Airflow was started with."""
        return load_config(self.settings)

    def kill(self) -> None:
        """End every process that carries this folder's mark: politely, then not."""
        give_up_at = time.monotonic() + SECONDS_TO_END
        for pid in _marked(self.home):
            _signal(pid, signal.SIGTERM)
        while living := _marked(self.home):
            if time.monotonic() > give_up_at:
                for pid in living:
                    _signal(pid, signal.SIGKILL)
            time.sleep(0.1)

    def failure(self) -> str:
        """The last lines of a supervisor that gave up; empty while it runs."""
        if self.running():
            return ""
        lines = (self.home / "supervisor.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    def login(self, port: int) -> Login:
        """Address, user and password; the password is made once for each folder."""
        file = self.home / "passwords.json"
        if not file.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as out:
                json.dump({USER: secrets.token_urlsafe(12)}, out)
        return Login(url=f"http://{HOST}:{port}", user=USER, password=json.loads(file.read_text())[USER])

    def _check_port(self, port: int) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise PlatformError(
                    f"port {port} is taken ({error.strerror})",
                    expected="a free port for Airflow's UI and API",
                    where="airflow.port of the settings",
                    remedy="end the other program or set another port",
                ) from error

    def _throw_history_away(self) -> None:
        for file in self.home.glob("airflow.db*"):
            file.unlink()
        if (empty := self.home / _empty_database()).exists():
            shutil.copyfile(empty, self.home / DATABASE)
        shutil.rmtree(self.home / "logs", ignore_errors=True)

    def _environment(self, config: Config, login: Login) -> dict[str, str]:
        options: dict[str, dict[str, object]] = {
            "core": {
                "dags_folder": self.dags,
                "plugins_folder": self.dags / "plugins",
                "executor": "LocalExecutor",
                "parallelism": PARALLEL_TASKS,
                "load_examples": False,
                "dags_are_paused_at_creation": False,
                "execution_api_server_url": f"{login.url}/execution/",
                "simple_auth_manager_users": f"{USER}:admin",
                "simple_auth_manager_passwords_file": self.home / "passwords.json",
            },
            "api": {"host": HOST, "port": config.airflow.port, "base_url": login.url, "workers": 1},
            "api_auth": {"jwt_secret": secrets.token_urlsafe(32)},
            "scheduler": {"scheduler_idle_sleep_time": 0.5},
            # the DAG files do not change while this Airflow lives
            "dag_processor": {"parsing_processes": 1, "min_file_process_interval": 600, "refresh_interval": 600},
            "usage_data_collection": {"enabled": False},
        }
        environment = {
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, values in options.items()
            for name, value in values.items()
        }
        inherited: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_")}
        return {
            **inherited,
            **environment,
            "AIRFLOW_HOME": str(self.home),
            MARK: str(self.home),
            "SPT_NOENV": "1",  # process titles must not overwrite the environment that `_marked` reads
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.dags), os.environ.get("PYTHONPATH")])),
            "STORYREC_CONFIG": str(self.settings),
            "STORYREC_PYTHON": os.environ.get("STORYREC_PYTHON") or sys.executable,
            PROGRESS_FOLDER: str(self.progress),
        }


def absolute(config: Config) -> Config:
    """The same settings with every relative folder spelled out, for processes that start elsewhere."""
    changes = {
        name: str(Path(place).resolve())
        for name, place in config.locations.model_dump().items()
        if name != "s3_endpoint" and place and "://" not in place
    }
    covers = {
        name: str(Path(place).resolve())
        for name in ("model", "picture_folder")
        if (place := getattr(config.covers, name)) and "://" not in place
    }
    return config.model_copy(
        update={
            "locations": config.locations.model_copy(update=changes),
            "covers": config.covers.model_copy(update=covers),
        }
    )


def supervise(home: Path, *, watched: bool) -> None:
    """Run Airflow's processes until one of them ends, a signal comes, or (watched) standard input closes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    airflow = [sys.executable, "-m", "airflow"]
    commands = {
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "api-server": ["api-server"],
        "dag-processor": ["dag-processor"],
    }
    if load_config(home / "storyrec.toml").profile == "cluster":
        commands["triggerer"] = ["triggerer", "--skip-serve-logs"]  # only a run on a cluster is waited for
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        if not (home / DATABASE).exists():
            with open(home / "migrate.log", "wb") as log:
                subprocess.run([*airflow, "db", "migrate"], check=True, stdout=log, stderr=log)
            write_file(home / _empty_database(), (home / DATABASE).read_bytes())  # the next start saves this
        for name, command in commands.items():
            with open(home / f"{name}.log", "wb") as log:
                processes[name] = subprocess.Popen(
                    [*airflow, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
        with selectors.DefaultSelector() as selector:
            if watched:
                selector.register(sys.stdin, selectors.EVENT_READ)
            while all(process.poll() is None for process in processes.values()):
                if selector.select(timeout=1.0):
                    print("the watching process has ended")
                    break
                if not watched:
                    time.sleep(1.0)
        for name, process in processes.items():
            if process.poll() is not None:
                print(f"{name} ended with exit code {process.returncode}; its last lines:")
                print("\n".join((home / f"{name}.log").read_text(errors="replace").splitlines()[-12:]), flush=True)
    except subprocess.CalledProcessError:
        print("airflow db migrate failed; its last lines:")
        print("\n".join((home / "migrate.log").read_text(errors="replace").splitlines()[-12:]), flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        others = [pid for pid in _marked(home) if pid != os.getpid()]
        for pid in others:
            _signal(pid, signal.SIGTERM)
        give_up_at = time.monotonic() + SECONDS_TO_END
        while any(pid != os.getpid() for pid in _marked(home)):
            for process in processes.values():
                process.poll()
            if time.monotonic() > give_up_at:
                for pid in _marked(home):
                    if pid != os.getpid():
                        _signal(pid, signal.SIGKILL)
            time.sleep(0.1)


def _empty_database() -> str:
    return f"empty-{version('apache-airflow-core')}.db"


def _marked(home: Path) -> list[int]:
    """Processes that carry the folder's mark in their environment, zombies not counted."""
    mark = f"{MARK}={home.resolve()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _is_supervisor(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"storyrec.airflow_local" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pipe_that_closes_with_us() -> int:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, False)
    return read_end


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), watched="--watched" in sys.argv[2:])
