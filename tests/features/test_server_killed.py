"""Feast's server killed under load: clients that try again see no wrong answer, and no click is lost."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest
from feature_server import Server, running_server
from feature_world import at, microseconds

START = at(4)
Answer = TypeVar("Answer")


class Client(threading.Thread):
    """Pushes a click after the other, each until it is acknowledged, and reads the sequence after each.

    Attributes:
        expected: the sequence as it must be: what the logs say, then what was acknowledged.
        num_acknowledged, num_failures: pushes, and requests without an answer.
        wrong: answers that are not what they must be.
    """

    def __init__(self, server: Server, done: threading.Event, *, user: int) -> None:
        super().__init__()
        self.server, self.done, self.user = server, done, user
        self.expected = server.world.sequence("product", user=user, before=START)
        self.num_acknowledged, self.num_failures, self.wrong = 0, 0, list[str]()

    def run(self) -> None:
        """Until it is told that all is done, or an answer is wrong."""
        while not self.done.is_set() and not self.wrong:
            when = START.replace(microsecond=self.num_acknowledged)
            click = (1_000 + self.num_acknowledged, microseconds(when))
            answer = self._again(partial(self.server.push, self.user, click[0], when))
            if answer.status_code != 200:
                self.wrong.append(f"{answer.status_code} {answer.text}")
                return
            self.expected = [*self.expected, click][-20:]
            self.num_acknowledged += 1
            found = self._again(partial(self.server.sequence, self.user))
            if found != self.expected:
                self.wrong.append(f"{found} instead of {self.expected}")

    def _again(self, request: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return request()
            except httpx.TransportError:
                self.num_failures += 1
                time.sleep(0.05)


@pytest.mark.slow  # three starts of the server
def test_a_killed_server_loses_nothing_and_serves_again(tmp_path: Path, redis_server: str) -> None:
    with running_server(tmp_path, redis_server) as server:
        done = threading.Event()
        clients = [Client(server, done, user=user) for user in (5, 6, 4_711)]
        for client in clients:
            client.start()

        def pushed(more: int) -> None:
            """Wait until every client is some clicks further."""
            goals = [client.num_acknowledged + more for client in clients]
            for _ in range(1_200):
                assert [client.wrong for client in clients] == [[], [], []]
                if all(client.num_acknowledged >= goal for client, goal in zip(clients, goals, strict=True)):
                    return
                time.sleep(0.1)
            raise AssertionError("the clients do not get on")

        try:
            pushed(5)
            _worker(server).kill()  # the server starts another one by itself
            pushed(5)
            for _ in range(2):
                server.end(signal.SIGKILL)
                server.start()
                pushed(5)
        finally:
            done.set()
            for client in clients:
                client.join()
        assert [client.wrong for client in clients] == [[], [], []]
        assert all(client.num_failures for client in clients)
        for client in clients:
            assert server.sequence(client.user) == client.expected


def _worker(server: Server) -> psutil.Process:
    """The process that answers: the last one of those that listen, after the one that watches it."""
    processes = psutil.Process(server.processes[-1].pid).children(recursive=True)
    port = server.client.base_url.port
    return [one for one in processes if any(found.laddr.port == port for found in one.net_connections())][-1]
