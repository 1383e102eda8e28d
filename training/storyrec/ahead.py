"""Reading ahead: what comes next is got ready while the caller is at work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


def read_ahead(pool: ThreadPoolExecutor, read: Callable[[S], T], items: Iterable[S], *, num_ahead: int) -> Iterator[T]:
    """What `read` makes of each item, in their order; the pool is at work on up to `num_ahead` items that come."""
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
