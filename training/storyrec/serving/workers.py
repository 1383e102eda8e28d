"""Processes that do the same work: one that ends or falls silent is replaced, and none outlives who started it."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_double

Beat = Callable[[], None]
"""What a worker calls again and again to say that it is well."""

LOOK_SECONDS = 0.5
SILENT_SECONDS = 60.0
STOP_SECONDS = 30.0

log = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")


def run_workers(
    work: Callable[[Beat], None],
    *,
    number: int,
    begun: Callable[[], None] = lambda: None,
    silent_seconds: float = SILENT_SECONDS,
) -> None:
    """Have the work done until SIGTERM or SIGINT, which the workers are then sent too.

    Args:
        work: what each process does; can be pickled.
        number: of processes.
        begun: called once, when the first of them has said that it is well.
        silent_seconds: a worker that has begun to say that it is well and has not for so long is killed.
    """
    signals: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: signals.append(number))
    workers = [_Worker(work) for _ in range(number)]
    to_call = [begun]
    while not signals:
        time.sleep(LOOK_SECONDS)  # also the pause between two tries of a worker that cannot start
        if to_call and any(worker.has_begun for worker in workers):
            to_call.pop()()
        for place, worker in enumerate(workers):
            if not signals and (trouble := worker.trouble(silent_seconds)):
                log.error("a worker %s and is replaced", trouble)
                worker.process.kill()
                worker.process.join()
                workers[place] = _Worker(work)
    for worker in workers:
        worker.process.terminate()
    ends = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, ends - time.monotonic()))
        worker.process.kill()


class _Worker:
    def __init__(self, work: Callable[[Beat], None]) -> None:
        self._beaten = _spawn.Value("d", 0.0, lock=False)
        self.process = _spawn.Process(target=_work, args=(work, self._beaten))
        self.process.start()

    @property
    def has_begun(self) -> bool:
        return bool(self._beaten.value)

    def trouble(self, silent_seconds: float) -> str:
        """What is wrong with it; empty where nothing is."""
        if not self.process.is_alive():
            return f"ended with exit code {self.process.exitcode}"
        silence = time.monotonic() - self._beaten.value if self.has_begun else 0.0
        return f"was silent for {silence:.0f} seconds" if silence > silent_seconds else ""


def _work(work: Callable[[Beat], None], beaten: c_double) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def beat() -> None:
        beaten.value = time.monotonic()

    with suppress(KeyboardInterrupt):  # Ctrl-C reaches every process of the terminal
        work(beat)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
