"""Processes that share work: results, errors, and what is left when the first one is killed."""

import operator
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from storyrec.processes import run_tasks

SCRIPT = """
import time
from functools import partial
from pathlib import Path
from storyrec.processes import run_tasks
if __name__ == "__main__":
    print("started", flush=True)
    list(run_tasks([partial(time.sleep, 600)] * 2, num_processes=2))
"""


def test_every_task_is_done_once() -> None:
    tasks = [partial(operator.mul, number, number) for number in range(5)]
    assert sorted(run_tasks(tasks, num_processes=2)) == [0, 1, 4, 9, 16]


def test_the_first_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_tasks([partial(operator.floordiv, 1, divisor) for divisor in (1, 0)], num_processes=2))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks into /proc")
def test_a_killed_process_leaves_none_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)])
    children: list[int] = []
    while process.poll() is None and len(children) < 3:  # the resource tracker and two workers
        children = children_of(process.pid)
    process.kill()
    process.wait()
    assert len(children) == 3
    while any(is_running(child) for child in children):
        pass  # ends by pytest's own limit where one stays
