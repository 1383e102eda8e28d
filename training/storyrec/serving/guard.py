"""Around every HTTP request: its size and time are bounded, and it is counted."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storyrec.serving.bounded_body import bounded_body
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

        bounded = bounded_body(receive, max_bytes=self.max_body_bytes, seconds=self.body_seconds)
        try:
            await self.app(scope, bounded, counting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(route, version, status).inc()
            SECONDS.labels(route).observe(time.perf_counter() - started)
