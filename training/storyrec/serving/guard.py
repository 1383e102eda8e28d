"""Around every HTTP request: its size and time are bounded, and it is counted."""

import asyncio
import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storyrec.serving.metrics import REQUESTS, SECONDS

VERSION_HEADER = "storyrec-model-version"


class Guard:
    """ASGI middleware.

    Args:
        app: what it is around.
        max_body_bytes: a larger body is refused with 413.
        body_seconds: a body that takes longer to arrive is refused with 408.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_seconds: float) -> None:
        self.app, self.max_body_bytes, self.body_seconds = app, max_body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, version = time.perf_counter(), 500, ""

        async def counting(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                version = dict(message["headers"]).get(VERSION_HEADER.encode(), b"").decode()
            await send(message)

        try:
            await self.app(scope, self._bounded(receive), counting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(route, version, status).inc()
            SECONDS.labels(route).observe(time.perf_counter() - started)

    def _bounded(self, receive: Receive) -> Receive:
        num_bytes, ends, is_whole = 0, time.monotonic() + self.body_seconds, False

        async def bounded() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, f"the body did not come within {self.body_seconds} seconds") from error
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
                if num_bytes > self.max_body_bytes:
                    raise HTTPException(413, f"the body has more than {self.max_body_bytes:,} bytes")
            return message

        return bounded
