"""Work shared by a few processes that end with the one that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Result = TypeVar("Result")


def process_pool(num_processes: int) -> ProcessPoolExecutor:
    """A pool of fresh processes; each ends as soon as this one does, even if it is killed."""
    return ProcessPoolExecutor(
        num_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )


def run_tasks(tasks: Sequence[Callable[[], Result]], *, num_processes: int) -> Iterator[Result]:
    """Do picklable tasks, some at a time; yields their results as they come."""
    with process_pool(num_processes) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
