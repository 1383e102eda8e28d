"""The HTTP application: what all routes share. The routes are in `oip` and `plain`."""

import importlib.metadata
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from storyrec.errors import ModelError
from storyrec.serving.guard import VERSION_HEADER, Guard
from storyrec.serving.metrics import exposition
from storyrec.serving.recommender import BadRequest, Recommender
from storyrec.serving.served import NotServed

VERSION = importlib.metadata.version("storyrec")


def create_app(
    recommender: Recommender,
    *,
    num_stories: int,
    max_body_bytes: int,
    body_seconds: float,
    running: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
) -> FastAPI:
    """The server's routes.

    Args:
        recommender: answers.
        num_stories: default number of stories for a product.
        max_body_bytes, body_seconds: bounds of a request, see `Guard`.
        running: what is open while the application runs.
    """
    from storyrec.serving.oip import oip_routes
    from storyrec.serving.plain import plain_routes

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running():
            yield

    app = FastAPI(
        title="storyrec",
        version=VERSION,
        description="Which story will a user click? Requests carry ids; clicks come from the feature store.",
        lifespan=lifespan,
    )
    app.add_middleware(Guard, max_body_bytes=max_body_bytes, body_seconds=body_seconds)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in error.errors()[:10]]
        return respond({"error": "; ".join(problems)}, status=400)

    @app.exception_handler(BadRequest)
    async def bad(request: Request, error: BadRequest) -> Response:
        return respond({"error": str(error)}, status=400)

    @app.exception_handler(ModelError)
    async def unable(request: Request, error: ModelError) -> Response:
        return respond({"error": error.found}, status=404)

    @app.exception_handler(NotServed)
    async def not_served(request: Request, error: NotServed) -> Response:
        return respond({"error": str(error)}, status=404 if error.is_ready else 503)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return respond({"error": error.detail}, status=error.status_code, headers=error.headers)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(oip_routes(recommender))
    app.include_router(plain_routes(recommender, num_stories=num_stories))
    return app


def respond(
    content: Mapping[str, Any], *, status: int = 200, version: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response without FastAPI's walk over its content.

    Args:
        content: of what JSON has.
        status: of HTTP.
        version: of the model that answered.
        headers: more of them.
    """
    headers = {**(headers or {}), **({VERSION_HEADER: version} if version else {})}
    return Response(to_json(content), status, headers, media_type="application/json")
