"""Clients that send their headers slowly, or never: the server hangs up, and answers everybody else meanwhile."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

import httpx
import pytest
import uvicorn
from served_world import running_server
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from storyrec.serving.connection import Connection
from storyrec.storage import FolderStorage

SECONDS = 1.0
BEGIN = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n"
WHOLE = BEGIN + b"\r\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("slow")
    with running_server(folder, FolderStorage(folder / "registry").url, body_seconds=SECONDS) as address:
        httpx.get(f"{address}/v2/health/live", timeout=60)  # until it has started
        yield address


@contextmanager
def connection(address: str) -> Iterator[socket.socket]:
    url = httpx.URL(address)
    assert url.port is not None
    with socket.create_connection((url.host, url.port), timeout=20) as client:
        yield client


def all_answered(client: socket.socket) -> bytes:
    """What comes until the server hangs up; TimeoutError where it does not."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def one_answer(client: socket.socket) -> bytes:
    """What comes until nothing does for a moment."""
    answer = client.recv(65_536)
    while select([client], [], [], SECONDS / 10)[0]:
        answer += client.recv(65_536)
    return answer


def test_half_of_the_headers_is_answered_with_408_in_time(address: str) -> None:
    with connection(address) as client:
        began = time.monotonic()
        client.sendall(BEGIN)
        assert httpx.get(f"{address}/v2/health/live").status_code == 200
        answer = all_answered(client)
    assert SECONDS - 0.1 < time.monotonic() - began < SECONDS + 10
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"the headers did not come within 1.0 seconds"}')
    assert b"connection: close" in answer


def test_a_header_a_moment_does_not_win_time(address: str) -> None:
    with connection(address) as client:
        began = time.monotonic()
        client.sendall(BEGIN)
        while not select([client], [], [], SECONDS / 5)[0]:
            client.sendall(b"x-more: 1\r\n")
            assert time.monotonic() - began < SECONDS + 10
        assert all_answered(client).startswith(b"HTTP/1.1 408 ")


def test_an_answered_request_does_not_go_on_for_ever(address: str) -> None:
    with connection(address) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        assert one_answer(client).startswith(b"HTTP/1.1 404 ")
        while not select([client], [], [], SECONDS / 5)[0]:
            client.sendall(b" ")
            assert time.monotonic() - began < SECONDS + 10
        assert client.recv(65_536) == b""
        assert time.monotonic() - began > SECONDS - 0.1


def test_a_body_that_ends_after_its_answer_is_followed_by_the_next_request(address: str) -> None:
    with connection(address) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{")
        assert one_answer(client).startswith(b"HTTP/1.1 404 ")
        client.sendall(b"}")
        assert not select([client], [], [], 1.5 * SECONDS)[0]
        client.sendall(WHOLE)
        assert one_answer(client).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_says_nothing_gets_no_answer_but_the_end(address: str) -> None:
    with connection(address) as client:
        assert all_answered(client) == b""


def test_a_later_request_has_its_own_time(address: str) -> None:
    with connection(address) as client:
        for _ in range(3):
            client.sendall(BEGIN)
            time.sleep(0.4 * SECONDS)  # together longer than one may take
            client.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 ")
        client.sendall(BEGIN)
        assert all_answered(client).startswith(b"HTTP/1.1 408 ")


def test_the_headers_time_is_not_the_bodys(address: str) -> None:
    body = b'{"user_id": 1, "candidates": [1]}'
    post = b"POST /v1/rank HTTP/1.1\r\nHost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with connection(address) as client:  # a body has its own time
        client.sendall(post % len(body))
        assert b"the body did not come within 1.0 seconds" in all_answered(client)
    with connection(address) as client:
        client.sendall(post % len(body) + body[:5])
        time.sleep(0.4 * SECONDS)
        client.sendall(body[5:])
        assert client.recv(65_536).startswith(b"HTTP/1.1 503 ")  # nothing is deployed


def test_what_is_being_answered_is_answered_whole() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        await PlainTextResponse("whole")(scope, receive, send)

    async def ask() -> bytes:
        config, state = uvicorn.Config(slow, lifespan="off"), ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config=config, server_state=state, app_state={}, header_seconds=0.1), "127.0.0.1", 0
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(WHOLE + BEGIN)
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
        return answer

    answer = asyncio.run(ask())
    assert (answer[:13], answer[-5:], answer.count(b"HTTP/1.1 ")) == (b"HTTP/1.1 200 ", b"whole", 1)
