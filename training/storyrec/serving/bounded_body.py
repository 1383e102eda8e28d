"""Bodies of requests, of bounded size and time."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive


def bounded_body(receive: Receive, *, max_bytes: int, seconds: float) -> Receive:
    """What receives the body of one request, within bounds.

    Args:
        receive: what receives it, of ASGI.
        max_bytes: of the whole body.
        seconds: from now to its end.

    Raises:
        HTTPException: by the receiving: 413 where it is larger, 408 where it takes longer.
    """
    num_bytes, ends, is_whole = 0, time.monotonic() + seconds, False

    async def bounded() -> Message:
        nonlocal num_bytes, is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {seconds} seconds") from error
        if message["type"] == "http.request":
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise HTTPException(413, f"the body has more than {max_bytes:,} bytes")
        return message

    return bounded
