"""Processes that are replaced, and end with what started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
from storyrec.serving.workers import run_workers

def work(beat):
    beat()
    Path(sys.argv[1], str(os.getpid())).touch()
    while True:
        time.sleep(0.1)
        beat()

if __name__ == "__main__":
    run_workers(work, number=2, begun=lambda: print(*Path(sys.argv[1]).iterdir(), flush=True), silent_seconds=2.0)
"""


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with two workers, each of which leaves a file named as itself."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "begun").mkdir()
    command = [sys.executable, str(folder / "script.py"), str(folder / "begun")]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield supervisor
    finally:
        supervisor.kill()
        supervisor.wait()


def begun(folder: Path, *, number: int) -> list[int]:
    """The workers that have begun, in their order, once there are so many."""
    deadline = time.monotonic() + 60
    while len(files := sorted((folder / "begun").iterdir(), key=lambda file: file.stat().st_mtime_ns)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(file.name) for file in files]


def is_gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


def all_gone(pids: list[int], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (gone := all(map(is_gone, pids))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone


def test_a_worker_that_dies_is_replaced_and_all_end_when_told(tmp_path: Path) -> None:
    with running(tmp_path) as supervisor:
        first, second = begun(tmp_path, number=2)
        os.kill(first, signal.SIGKILL)
        workers = begun(tmp_path, number=3)
        assert [is_gone(pid) for pid in workers] == [pid == first for pid in workers]
        os.kill(second, signal.SIGKILL)
        time.sleep(0.6)  # its replacement may only be starting
        supervisor.terminate()
        assert supervisor.wait(10) == 0
        assert all_gone(begun(tmp_path, number=3), seconds=0)


def test_what_waits_for_the_first_worker_is_called_once(tmp_path: Path) -> None:
    with running(tmp_path) as supervisor:
        first, _ = begun(tmp_path, number=2)
        os.kill(first, signal.SIGKILL)
        begun(tmp_path, number=3)
        time.sleep(0.6)
        supervisor.terminate()
        assert supervisor.stdout is not None
        (called,) = supervisor.stdout.read().splitlines()
        assert called  # a worker had begun


def test_a_worker_that_falls_silent_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as supervisor:
        first, second = begun(tmp_path, number=2)
        os.kill(first, signal.SIGSTOP)
        begun(tmp_path, number=3)
        assert (is_gone(first), is_gone(second)) == (True, False)
        supervisor.terminate()
        assert supervisor.wait(10) == 0


def test_no_worker_outlives_what_started_it(tmp_path: Path) -> None:
    with running(tmp_path) as supervisor:
        workers = begun(tmp_path, number=2)
        supervisor.kill()
        assert all_gone(workers, seconds=10)
