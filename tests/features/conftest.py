"""Fixtures of the feature tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from feature_world import World, fill
from redis_server import free_port, running_redis


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five validated days, eleven users."""
    return fill(World(tmp_path), num_days=5)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """host:port of a running server that speaks Redis."""
    port = free_port()
    with running_redis(port):
        yield f"127.0.0.1:{port}"


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
