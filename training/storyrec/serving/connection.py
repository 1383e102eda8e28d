"""One client's connection to a server: uvicorn's, which alone would wait for ever for what does not come."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Hangs up on a client whose headers do not come in time, with 408 where it has begun to send them.

    So it does on one that goes on and on with the body of a request that is answered already.

    Args:
        header_seconds: from the beginning of the connection, or of a later request, to the end of the headers; also
            from an answer to the end of its request's body.
    """

    def __init__(self, *arguments: Any, header_seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._header_seconds = header_seconds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's headers."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """Wait for a later request's headers; those of the first are waited for already."""
        super().on_message_begin()
        if self._deadline is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """They came."""
        self._wait_no_more()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body came."""
        self._wait_no_more()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that nobody read."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._deadline = self.loop.call_later(self._header_seconds, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """They will not come."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self._header_seconds, self._hang_up)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.headers is not None and not is_answering:
            error = f'{{"error":"the headers did not come within {self._header_seconds} seconds"}}'.encode()
            said = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(error)
            self.transport.write(STATUS_LINE[408] + said + error)
        self.shutdown()  # at once, or when what it answers now is answered
