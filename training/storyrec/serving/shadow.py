"""What is scored unseen, one after the other, after the answer went out; where too many wait, some are dropped."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore

from storyrec.serving.metrics import SHADOWS_DROPPED

MAX_WAITING = 50


class Shadows:
    """Scores in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._room = BoundedSemaphore(MAX_WAITING)

    def score(self, task: Callable[[], None]) -> None:
        """Have it done, or drop it where too many wait."""
        if not self._room.acquire(blocking=False):
            SHADOWS_DROPPED.inc()
            return
        self._thread.submit(task).add_done_callback(lambda done: self._room.release())

    def close(self) -> None:
        """Score what waits and end."""
        self._thread.shutdown()
