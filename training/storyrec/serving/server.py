"""The model server: one port, a process or several, each with the champion, its routes and its threads."""

import gc
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from storyrec.config import Config
from storyrec.errors import PlatformError, StoryrecError
from storyrec.serving.ranking import Clicks
from storyrec.serving.workers import Beat, run_workers
from storyrec.storage import open_storage

if TYPE_CHECKING:
    from fastapi import FastAPI

    from storyrec.serving.split import Split
    from storyrec.serving.store import Sequences

log = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """Serve the champion until stopped; clicks come from the feature store.

    Raises:
        PlatformError, StoryrecError: as `serve_with`.
    """
    serve_with(config, sequences=partial(feature_store, config))


def serve_with(config: Config, *, sequences: "Callable[[], Sequences | None]") -> None:
    """Serve the champion until stopped.

    Args:
        config: settings; serving, locations, match.num_stories.
        sequences: opens what looks clicks up, in each process; can be pickled.

    Raises:
        PlatformError: the port is taken or the address is not this machine's.
        StoryrecError: the registry cannot be read, or the deployed bundle cannot be used.
    """
    settings = config.serving
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        port = listener.getsockname()[1]
        if settings.grpc_port:
            listen(settings.host, settings.grpc_port).close()  # a taken port ends here, with its message
        if settings.workers > 1:  # before anything counts
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        models = open_models(config, port=port)
        version = models.bundle.version if models.bundle else "no champion yet"
        announce = partial(print, f"storyrec: http://{settings.host}:{port} serves {version}", flush=True)
        if settings.workers == 1:
            app = make_app(config, models=models, sequences=sequences)
            run_app(app, listener, header_seconds=settings.body_seconds, begun=announce)
        else:
            del models  # each worker opens its own from the cache
            work = partial(serve_as_worker, config, listener, sequences)
            run_workers(work, number=settings.workers, begun=announce)


def serve_as_worker(
    config: Config, listener: socket.socket, sequences: "Callable[[], Sequences | None]", beat: Beat
) -> None:
    """Serve as one of several processes until stopped; at once where it has not begun to."""
    models = open_models(config, port=listener.getsockname()[1])
    app = make_app(config, models=models, sequences=sequences)
    run_app(app, listener, header_seconds=config.serving.body_seconds, beat=beat)


def run_app(
    app: "FastAPI",
    listener: socket.socket,
    *,
    header_seconds: float,
    begun: Callable[[], None] = lambda: None,
    beat: Beat = lambda: None,
) -> None:
    """Serve an application until stopped.

    Args:
        app: the application.
        listener: the socket.
        header_seconds: as for `Connection`.
        begun: called once it answers.
        beat: called then, and every second.
    """
    import uvicorn

    from storyrec.serving.connection import Connection

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun()

    async def tick() -> None:
        beat()

    gc.collect()
    gc.freeze()  # a collection that walks over all modules takes longer than many requests
    settings = uvicorn.Config(
        app,
        http=partial(Connection, header_seconds=header_seconds),  # type: ignore[arg-type]  # it is only called
        log_level="warning",
        access_log=False,
        callback_notify=tick,
        timeout_notify=1,
    )
    Server(settings).run(sockets=[listener])


def open_models(config: Config, *, port: int) -> "Split":
    """The bundles that serve, at what the pointer names now.

    Args:
        config: settings; serving, locations.
        port: of the server; one cache a port.

    Raises:
        StoryrecError: the registry cannot be read, or the deployed bundle cannot be used.
    """
    from storyrec.registry import open_registry
    from storyrec.rollout.checks import canary_limits
    from storyrec.serving.new_stories import NewStories
    from storyrec.serving.served import ServedBundle
    from storyrec.serving.split import Split

    settings, locations = config.serving, config.locations
    slots = [
        ServedBundle(
            open_registry(locations),
            Path(settings.cache) / f"{port}-{name}",
            follow_canary=settings.follow == "canary",
            new_stories=NewStories(open_storage(settings.stories, s3_endpoint=locations.s3_endpoint))
            if settings.stories
            else None,
        )
        for name in (("champion", "canary") if settings.follow == "both" else ("only",))
    ]
    models = Split(*slots, limits=canary_limits(config.rollout))
    models.champion.refresh()  # the canary, which may fail, comes with the first look at the pointer
    return models


def make_app(config: Config, *, models: "Split", sequences: "Callable[[], Sequences | None]") -> "FastAPI":
    """The application over the bundles that serve, with the threads that it needs while it runs.

    Args:
        config: settings; serving, match.num_stories.
        models: the bundles that serve.
        sequences: opens what looks clicks up.
    """
    import faiss

    from storyrec.serving.answer_log import AnswerLog
    from storyrec.serving.app import create_app
    from storyrec.serving.recommender import Limits, Recommender
    from storyrec.serving.store import SequenceStore

    faiss.omp_set_num_threads(1)  # scale by processes: threads fight for cores
    settings = config.serving
    store = SequenceStore(sequences(), deadline_seconds=settings.store_seconds)
    answers = AnswerLog(Path(settings.answers), flush_seconds=settings.answers_seconds) if settings.answers else None
    recommender = Recommender(
        models,
        store=store,
        limits=Limits(
            max_candidates=settings.max_candidates,
            max_clicks=settings.max_clicks,
            num_retrieved=settings.num_retrieved,
        ),
        answers=answers,
        now_us=lambda: time.time_ns() // 1_000,
    )
    max_body_bytes = settings.max_body_kilobytes * 1_000

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(store.close)
            if answers is not None:
                stack.callback(answers.close)
            stack.callback(recommender.close)
            stack.enter_context(watching(models, poll_seconds=settings.poll_seconds))
            if settings.grpc_port:
                from storyrec.serving.grpc_server import start_grpc

                server = await start_grpc(
                    recommender, host=settings.host, port=settings.grpc_port, max_body_bytes=max_body_bytes
                )
                stack.push_async_callback(server.stop, grace=5)
            yield

    return create_app(
        recommender,
        num_stories=config.match.num_stories,
        max_body_bytes=max_body_bytes,
        body_seconds=settings.body_seconds,
        running=running,
    )


@contextmanager
def watching(models: "Split", *, poll_seconds: float) -> Iterator[None]:
    """Keep what serves fresh while the block runs."""
    stop = threading.Event()
    watcher = threading.Thread(target=models.watch, args=(stop,), kwargs={"poll_seconds": poll_seconds}, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(10)


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
    """How to look a user's clicks up online; None, with a warning, where there is no feature store.

    One that is down is opened by the first look-up that finds it up again; those before fail.
    """
    try:
        from storyrec.features.partitions import work_folder
        from storyrec.features.repository import feature_repo, read_settings, settings_file
        from storyrec.features.store import open_feature_store

        work_folder(config.locations.work)
        read_settings(settings_file(feature_repo(), profile=config.profile))
    except (ImportError, StoryrecError) as error:
        log.warning("no feature store, every user is served without clicks: %s", error)
        return None
    opened = cache(partial(open_feature_store, config.locations.work, profile=config.profile))  # keeps no failure
    try:
        opened()  # here, because it takes longer than a request may wait
    except StoryrecError as error:
        log.warning("the feature store is down, users are served without clicks until it is back: %s", error)

    def sequences(user_id: int) -> tuple[Clicks, Clicks]:
        (found,) = opened().online_sequences([user_id])
        return Clicks(found.story_ids, found.story_clicked_us), Clicks(found.product_ids, found.product_clicked_us)

    return sequences
