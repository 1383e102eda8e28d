"""Feast's own server as a process, over a world whose first four days are in a real Redis."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from feature_world import NOW, World, day_of, fill, microseconds
from redis import Redis
from redis_server import free_port

from oidc_provider import AUDIENCE, Provider, oidc_provider
from storyrec.config import save_config, update_config
from storyrec.features.build import build_features, materialize_features


@dataclass(frozen=True)
class Server:
    """Feast's server over a world whose first four days are online."""

    world: World
    client: httpx.Client
    redis: Redis
    provider: Provider
    settings: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start a process and wait until it answers."""
        command = [sys.executable, "-m", "storyrec.cli", "features", "serve", "--config", str(self.settings)]
        with (self.world.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send all of the newest process's processes a signal and wait for its end."""
        os.killpg(self.processes[-1].pid, number)
        self.processes.pop().wait(timeout=30)

    def push(self, user: int, item: int, when: datetime, **other: Any) -> httpx.Response:
        """One click, as a caller would send it; None leaves a field out."""
        time_ = when.isoformat()
        row = {"user_id": user, "product_ids": [item], "product_clicked_us": [microseconds(when)]}
        columns = {**row, "event_timestamp": time_, "known_at": time_, **other}
        frame = {name: [value] for name, value in columns.items() if value is not None}
        return self.client.post("/push", json={"push_source_name": "product_clicks", "df": frame})

    def sequence(self, user: int) -> list[tuple[int, int]]:
        """The user's products with their times, from the server."""
        asked = {"feature_service": "ranker_v1", "entities": {"user_id": [user]}}
        answer = self.client.post("/get-online-features", json=asked).raise_for_status().json()
        names = answer["metadata"]["feature_names"]
        columns = [
            answer["results"][names.index(name)]["values"][0] or [] for name in ("product_ids", "product_clicked_us")
        ]
        return [(int(item), int(us)) for item, us in zip(*columns, strict=True)]

    def stored(self) -> dict[bytes, bytes]:
        """Everything in Redis."""
        return {key: self.redis.get(key) for key in self.redis.scan_iter()}


@contextmanager
def running_server(folder: Path, redis_server: str) -> Iterator[Server]:
    """A server that asks for tokens; the client shows a writer's."""
    world, port = fill(World(folder), num_days=4), free_port()
    config = world.config.model_copy(update={"profile": "cluster"})
    host, _, redis_port = redis_server.partition(":")
    settings = folder / "settings.toml"
    with (
        pytest.MonkeyPatch.context() as patch,
        Redis(host=host, port=int(redis_port)) as redis,
        oidc_provider() as provider,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=20,
            limits=httpx.Limits(max_keepalive_connections=0),  # after an error the server hangs up
            headers={"Authorization": f"Bearer {provider.token('writer')}"},
        ) as client,
    ):
        redis.flushall()
        patch.setenv("STORYREC_REDIS", redis_server)
        patch.setenv("STORYREC_FEAST_REGISTRY", f"sqlite:///{folder}/registry.sqlite")
        patch.setenv("STORYREC_OIDC_DISCOVERY", provider.discovery)
        patch.setenv("STORYREC_OIDC_AUDIENCE", AUDIENCE)
        build_features(config, day=day_of(3))
        materialize_features(config, day=day_of(3), now=NOW)
        save_config(update_config(config, {"feature_server": {"port": port}}), settings)
        server = Server(world, client, redis, provider, settings)
        try:
            server.start()
            yield server
        finally:
            if server.processes:
                server.end()
