"""The model server: fetches the champion, keeps it fresh, and puts the HTTP routes over it.

A new champion is fetched, verified and queried beside the one that serves, then takes its place at
once; one that cannot be used is refused and the old one goes on.
"""

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from storyrec.config import Config
from storyrec.errors import PlatformError, StoryrecError
from storyrec.serving.ranking import Clicks
from storyrec.serving.served import ServedBundle
from storyrec.storage import open_storage

if TYPE_CHECKING:
    from storyrec.serving.routes import Sequences

log = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """Serve the champion until stopped; clicks come from the feature store.

    Raises:
        PlatformError, StoryrecError: as `serve_with`.
    """
    serve_with(config, sequences=lambda: feature_store(config))


def serve_with(config: Config, *, sequences: "Callable[[], Sequences | None]") -> None:
    """Serve the champion until stopped; clicks come from what `sequences` opens once the server has its port.

    Raises:
        PlatformError: the port is taken or the address is not this machine's.
        StoryrecError: the registry cannot be read, or the deployed bundle cannot be used.
    """
    import uvicorn

    from storyrec.serving.routes import create_app

    settings, locations = config.serving, config.locations
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        # one server a port, so one server a cache
        champion = ServedBundle(
            open_storage(locations.registry, s3_endpoint=locations.s3_endpoint),
            Path(settings.cache) / str(port),
            follow_canary=settings.follow == "canary",
        )
        champion.refresh()
        app = create_app(
            champion,
            sequences=sequences(),
            poll_seconds=settings.poll_seconds,
            max_candidates=settings.max_candidates,
            num_stories=config.match.num_stories,
        )
        version = champion.bundle.version if champion.bundle else "no champion yet"
        print(f"storyrec: http://{settings.host}:{port} serves {version}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        PlatformError: the port is taken or the address is not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1_024)
    except OSError as error:
        listener.close()
        raise PlatformError(
            f"cannot listen on port {port}: {error.strerror or error}",
            expected="a free port of this machine",
            where=f"{host}:{port}",
            remedy="stop what uses it, or set another port",
        ) from error
    return listener


def feature_store(config: Config) -> "Sequences | None":
    """How to look a user's clicks up online; None, with a warning, where there is no feature store."""
    try:
        from storyrec.features.store import open_feature_store

        store = open_feature_store(config.locations.work, profile=config.profile)
    except (ImportError, StoryrecError) as error:
        log.warning("no feature store, every user is served without clicks: %s", error)
        return None
    lock = threading.Lock()  # its connection is not made for several threads

    def sequences(user_id: int) -> tuple[Clicks, Clicks]:
        with lock:
            (found,) = store.online_sequences([user_id])
        return Clicks(found.story_ids, found.story_clicked_us), Clicks(found.product_ids, found.product_clicked_us)

    return sequences
