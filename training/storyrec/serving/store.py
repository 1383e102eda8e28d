"""A user's clicks from the feature store, within a deadline; an outage costs the clicks and not the answer.

A store that is down makes its client retry for many seconds. One thread asks it; a request waits for its
answer no longer than the deadline. After an error, or when a look-up itself takes too long, nobody asks for a
while (the circuit is open), then one request tries again. Requests that were late because many were before them
open nothing: the store is well.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from storyrec.serving.ranking import NO_CLICKS, Clicks

Sequences = Callable[[int], tuple[Clicks, Clicks]]
"""A user's story clicks and product clicks."""

Origin = Literal["online", "given", "none", "unavailable"]
"""Where clicks come from: the store, the request; there is no store; the store did not answer in time."""

OPEN_SECONDS = 1.0
STUCK_SHARE = 0.5
"""A look-up that has run for more than this share of the deadline when a request is late is to blame for it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Looked:
    """What was found of a user.

    Attributes:
        story_clicks, product_clicks: none where there was no answer.
        origin: where they come from.
        reason: why there is no answer: "deadline", "error", "circuit_open"; empty where there is one.
    """

    story_clicks: Clicks
    product_clicks: Clicks
    origin: Origin
    reason: str = ""


class SequenceStore:
    """Looks users up, one at a time; of one event loop.

    Args:
        sequences: asks the store; None: there is none, every user is one without clicks.
        deadline_seconds: how long a request waits, queueing included.
        open_seconds: how long nobody asks after a failure.
    """

    def __init__(
        self, sequences: Sequences | None, *, deadline_seconds: float, open_seconds: float = OPEN_SECONDS
    ) -> None:
        self._sequences, self._deadline, self._open_seconds = sequences, deadline_seconds, open_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feature-store")  # connections are for one thread
        self._failed, self._retry_at = False, 0.0
        self._began: float | None = None  # what the thread looks up now

    async def look_up(self, user_id: int) -> Looked:
        """The user's clicks, or none with the reason."""
        if self._sequences is None:
            return Looked(NO_CLICKS, NO_CLICKS, "none")
        if not self._may_ask():
            return Looked(NO_CLICKS, NO_CLICKS, "unavailable", "circuit_open")
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, self._sequences, user_id)
        await asyncio.wait([asked], timeout=self._deadline)
        if not asked.done():
            asked.cancel()  # where it waits behind others
            if self._is_stuck():
                self._fail("deadline")
            return Looked(NO_CLICKS, NO_CLICKS, "unavailable", "deadline")
        if (error := asked.exception()) is not None:
            self._fail(error)
            return Looked(NO_CLICKS, NO_CLICKS, "unavailable", "error")
        self._failed = False
        return Looked(*asked.result(), "online")

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _may_ask(self) -> bool:
        if not self._failed:
            return True
        now = time.monotonic()
        if now < self._retry_at or self._began is not None:
            return False
        self._retry_at = now + self._open_seconds  # this request alone tries
        return True

    def _ask(self, sequences: Sequences, user_id: int) -> tuple[Clicks, Clicks]:
        self._began = time.monotonic()
        try:
            return sequences(user_id)
        finally:
            self._began = None

    def _is_stuck(self) -> bool:
        began = self._began
        return began is not None and time.monotonic() - began > STUCK_SHARE * self._deadline

    def _fail(self, reason: object) -> None:
        if not self._failed:  # once an outage
            log.warning("the feature store did not answer for a user: %s", reason)
        self._failed, self._retry_at = True, time.monotonic() + self._open_seconds
