"""The processes of the feature server: Feast's, under gunicorn, which replaces one that dies."""

import gc
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from feast import FeatureStore
from feast import metrics as feast_metrics
from feast.errors import FeastError
from feast.feature_server import FeastServeApplication
from feast.infra.registry.sql import SqlRegistry
from feast.permissions.server.utils import (
    ServerType,
    init_auth_manager,
    init_security_manager,
    str_to_auth_manager_type,
)
from starlette.requests import Request
from starlette.responses import JSONResponse
from uvicorn_worker import UvicornWorker

from storyrec.features.read_app import ReadApp
from storyrec.serving.connection import Connection

REGISTRY_SECONDS = 60
"""So old may be what the server knows of the definitions."""
KEEP_ALIVE_SECONDS = 30
HEADER_SECONDS = 5


class Worker(UvicornWorker):
    """A process that hangs up on clients whose headers do not come."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "http": partial(Connection, header_seconds=HEADER_SECONDS),
    }


class Workers(FeastServeApplication):  # type: ignore[misc]
    """Feast's application in each process, behind the faster lookups."""

    def load_config(self) -> None:
        super().load_config()  # type: ignore[no-untyped-call]
        self.cfg.set("post_fork", self._forked)
        self.cfg.set("post_worker_init", _announce)
        self.cfg.set("worker_class", Worker)

    def load(self) -> ReadApp:
        gc.freeze()  # Feast's many modules are not looked through again and again, which takes a tenth of a second
        self._app.add_exception_handler(FeastError, _refuse)
        return ReadApp(self._app, self._store)

    def _forked(self, arbiter: Any, worker: Any) -> None:
        """Let each process make connections of its own to the registry."""
        registry = cast("SqlRegistry", self._store.registry)
        for engine in (registry.read_engine, registry.write_engine):
            engine.dispose(close=False)


async def _refuse(request: Request, error: FeastError) -> JSONResponse:
    """Feast's answer to who asked wrongly, without the tracebacks that it logs of an error of its own."""
    if error.http_status_code() >= 500:
        raise error
    return JSONResponse(error.to_error_detail(), error.http_status_code())


def _announce(worker: Any) -> None:
    """Say that the server answers, once the first of its processes does."""
    if worker.age == 1:
        print(f"storyrec: http://{worker.cfg.address[0][0]}:{worker.cfg.address[0][1]} serves features", flush=True)


def run_workers(repo: Path, *, settings: Path, host: str, port: int, num_workers: int) -> None:
    """Serve until stopped, as Feast's own `start_server` does, but for its worker's end after 1,000 requests.

    Args:
        repo: the feature repository.
        settings: Feast's, a file.
        host, port: where to listen.
        num_workers: processes.

    Raises:
        SystemExit: at the end; with a code where nobody asked for it.
    """
    store = FeatureStore(repo_path=str(repo), fs_yaml_file=settings)
    metrics = getattr(store.config.feature_server, "metrics", None)
    has_metrics = metrics is not None and metrics.enabled
    if has_metrics:
        feast_metrics.start_metrics_server(
            store,
            metrics_config=feast_metrics.build_metrics_flags(metrics),
            start_resource_monitoring=False,  # each worker watches itself
            start_freshness_monitoring=False,
        )
    auth = str_to_auth_manager_type(store.config.auth_config.type)
    init_security_manager(auth_type=auth, fs=store)
    init_auth_manager(auth_type=auth, server_type=ServerType.REST, auth_config=store.config.auth_config)
    Workers(
        store,
        metrics_enabled=has_metrics,
        bind=f"{host}:{port}",
        workers=num_workers,
        keepalive=KEEP_ALIVE_SECONDS,
        loglevel="warning",
        registry_ttl_sec=REGISTRY_SECONDS,
    ).run()
