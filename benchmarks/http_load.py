"""Requests over HTTP in an open loop, from a client that takes little of the machine it measures."""

import queue
import selectors
import socket
import threading
import time
from collections.abc import Sequence

import httptools
import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 2**18

Floats = npt.NDArray[np.float64]


class Connection:
    """A connection that carries one request after the other."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = -1
        self._parser, self._is_answered = httptools.HttpResponseParser(self), False

    def on_message_complete(self) -> None:
        """The parser has seen the end of an answer."""
        self._is_answered = True

    def send(self, number: int, request: bytes) -> None:
        """Send the request of this number."""
        self.number, self._is_answered = number, False
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status of the answer; None while there is more to come.

        Raises:
            OSError: the server has closed the connection.
        """
        chunk = self.socket.recv(CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("closed by the server")
        self._parser.feed_data(chunk)
        return int(self._parser.get_status_code()) if self._is_answered else None


def arrivals(*, rate: float, seconds: float) -> Floats:
    """When requests are due, in seconds: a Poisson process, the same for each of these rates."""
    return np.cumsum(np.random.default_rng(3).exponential(1 / rate, max(round(rate * seconds), 10)))


def open_loop(
    address: str, path: str, bodies: Sequence[bytes], *, rate: float, seconds: float, num_connections: int
) -> tuple[Floats, int]:
    """Post JSON at random moments, whether earlier requests are answered or not.

    Args:
        address: host:port.
        path: of all requests.
        bodies: asked with in turn.
        rate: requests a second.
        seconds: how long requests are sent.
        num_connections: opened before; a request that finds none free is late.

    Returns:
        Milliseconds from the moment each request was due to the end of its answer, and how many failed.
    """
    host, port = address.split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [head.encode() + b"%d\r\n\r\n" % len(body) + body for body in bodies]
    due_N = arrivals(rate=rate, seconds=seconds)
    latencies_N = np.full(len(due_N), np.nan)
    failed: list[int] = []
    free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    selector = selectors.DefaultSelector()

    def connect() -> None:
        connection = Connection(host, int(port))
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        free.put(connection)

    def receive() -> None:
        num_answered = 0
        while num_answered < len(due_N):
            for key, _ in selector.select():
                connection: Connection = key.data
                try:
                    status = connection.receive()
                except OSError:
                    status = 0
                    selector.unregister(connection.socket)
                    connection.socket.close()
                if status is None:
                    continue
                latencies_N[connection.number] = (time.perf_counter() - started - due_N[connection.number]) * 1e3
                num_answered += 1
                if status != 200:
                    failed.append(connection.number)
                if status:
                    free.put(connection)
                else:
                    connect()

    for _ in range(num_connections):
        connect()
    started = time.perf_counter() + 0.1
    receiver = threading.Thread(target=receive)
    receiver.start()
    for number, due in enumerate((started + due_N).tolist()):
        time.sleep(max(due - time.perf_counter(), 0))
        free.get().send(number, requests[number % len(requests)])
    receiver.join()
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    return latencies_N, len(failed)
