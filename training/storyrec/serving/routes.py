"""The server's HTTP routes: Open Inference Protocol, version 2, and stories for a product.

A request carries ids: the user's clicks come from the feature store, item vectors from the bundle.
"""

import importlib.metadata
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from storyrec.bundle import Bundle
from storyrec.match import nearest_stories
from storyrec.serving.ranking import NO_CLICKS, Clicks, rank
from storyrec.serving.served import ServedBundle

MODEL_NAME = "storyrec"
VERSION = importlib.metadata.version("storyrec")
INT64 = 2**63

Sequences = Callable[[int], tuple[Clicks, Clicks]]
"""A user's story clicks and product clicks."""

log = logging.getLogger(__name__)


class Tensor(BaseModel):
    """An input of a request."""

    model_config = ConfigDict(strict=True)

    name: Literal["user_id", "candidate_ids", "now_us"]
    shape: list[int]
    datatype: Literal["INT64"]
    data: list[Annotated[int, Field(ge=-INT64, lt=INT64)]]


class InferenceRequest(BaseModel):
    """Body of an inference request; unknown keys of the protocol are allowed."""

    id: str | None = None
    inputs: list[Tensor]


def create_app(
    champion: ServedBundle,
    *,
    sequences: Sequences | None,
    poll_seconds: float,
    max_candidates: int,
    num_stories: int,
    now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
) -> FastAPI:
    """The server's routes over one champion.

    Args:
        champion: what serves; polled while the application runs.
        sequences: looks a user's clicks up; None: nobody has any.
        poll_seconds: between two looks at the pointer.
        max_candidates: of one request.
        num_stories: default number of stories for a product.
        now_us: the clock, epoch microseconds UTC.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        watcher = threading.Thread(
            target=champion.watch, args=(stop,), kwargs={"poll_seconds": poll_seconds}, daemon=True
        )
        watcher.start()
        yield
        stop.set()
        watcher.join(10)

    app = FastAPI(title="storyrec", version=VERSION, lifespan=lifespan)

    def serving() -> Bundle:
        if champion.bundle is None:
            raise HTTPException(503, champion.refused or "no champion is deployed yet")
        return champion.bundle

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, 400)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.get("/v2")
    def server() -> dict[str, Any]:
        return {"name": "storyrec", "version": VERSION, "extensions": []}

    @app.get("/v2/health/live")
    def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    def ready() -> JSONResponse:
        is_ready = champion.bundle is not None
        return JSONResponse({"ready": is_ready, "refused": champion.refused}, 200 if is_ready else 503)

    @app.get(f"/v2/models/{MODEL_NAME}/ready")
    def model_ready() -> JSONResponse:
        return ready()

    @app.get(f"/v2/models/{MODEL_NAME}")
    def model() -> dict[str, Any]:
        bundle = serving()
        return {
            "name": MODEL_NAME,
            "versions": [bundle.version],
            "platform": "onnxruntime_onnx",
            "day": bundle.day.isoformat(),
            "inputs": [
                {"name": "user_id", "datatype": "INT64", "shape": [1]},
                {"name": "candidate_ids", "datatype": "INT64", "shape": [-1]},
                {"name": "now_us", "datatype": "INT64", "shape": [1], "parameters": {"optional": True}},
            ],
            "outputs": [
                {"name": "scores", "datatype": "FP32", "shape": [-1]},
                {"name": "unknown_candidate_ids", "datatype": "INT64", "shape": [-1]},
            ],
        }

    @app.post(f"/v2/models/{MODEL_NAME}/infer")
    def infer(body: InferenceRequest) -> dict[str, Any]:
        bundle = serving()
        values = _values(body.inputs, max_candidates=max_candidates)
        candidate_ids = values["candidate_ids"]
        story_clicks, product_clicks, origin = _look_up(sequences, values["user_id"][0])
        scores = rank(
            bundle,
            story_clicks=story_clicks,
            product_clicks=product_clicks,
            now_us=values["now_us"][0] if "now_us" in values else now_us(),
            candidate_ids=candidate_ids,
        )
        known = bundle.stories.rows(candidate_ids) > 0
        unknown = [candidate for candidate, is_known in zip(candidate_ids, known, strict=True) if not is_known]
        answer: dict[str, Any] = {
            "model_name": MODEL_NAME,
            "model_version": bundle.version,
            "parameters": {"sequences": origin},
            "outputs": [
                {"name": "scores", "datatype": "FP32", "shape": [len(scores)], "data": scores.tolist()},
                {"name": "unknown_candidate_ids", "datatype": "INT64", "shape": [len(unknown)], "data": unknown},
            ],
        }
        return answer if body.id is None else {"id": body.id, **answer}

    @app.get("/v1/products/{product_id}/stories")
    def stories_for_product(
        product_id: int, top: Annotated[int, Query(ge=1, le=1_000)] = num_stories
    ) -> dict[str, Any]:
        bundle = serving()
        row = int(bundle.products.rows(product_id)) if abs(product_id) < INT64 else 0
        if row == 0:
            raise HTTPException(404, f"model {bundle.version} does not know product {product_id}")
        rows_MK, distances_MK = nearest_stories(
            bundle.products.match_NM[row : row + 1], bundle.stories.match_NM[1:], top_k=top
        )
        ids = bundle.stories.ids_N[rows_MK[0] + 1]
        found = [{"story_id": int(i), "distance": float(d)} for i, d in zip(ids, distances_MK[0], strict=True)]
        return {"product_id": product_id, "model_version": bundle.version, "stories": found}

    return app


def _look_up(sequences: Sequences | None, user_id: int) -> tuple[Clicks, Clicks, str]:
    """The user's clicks and where they come from; a store that fails costs the clicks, not the answer."""
    if sequences is None:
        return NO_CLICKS, NO_CLICKS, "none"
    try:
        return *sequences(user_id), "online"
    except Exception as error:
        log.warning("the feature store did not answer for a user: %s", error)
        return NO_CLICKS, NO_CLICKS, "unavailable"


def _values(inputs: list[Tensor], *, max_candidates: int) -> dict[str, list[int]]:
    """The inputs by name, with what the protocol's types do not say checked."""
    values = {tensor.name: tensor.data for tensor in inputs}
    if len(values) != len(inputs):
        raise HTTPException(400, "an input is given twice")
    for name in ("user_id", "candidate_ids"):
        if name not in values:
            raise HTTPException(400, f"input '{name}' is missing")
    for tensor in inputs:
        if min(tensor.shape, default=-1) < 0 or math.prod(tensor.shape) != len(tensor.data):
            raise HTTPException(400, f"input '{tensor.name}' has {len(tensor.data)} values and shape {tensor.shape}")
        if tensor.name != "candidate_ids" and len(tensor.data) != 1:
            raise HTTPException(400, f"input '{tensor.name}' takes one value, not {len(tensor.data)}")
    if not 1 <= len(values["candidate_ids"]) <= max_candidates:
        raise HTTPException(400, f"{len(values['candidate_ids'])} candidates; a request has 1 to {max_candidates:,}")
    if "now_us" in values and not 0 <= values["now_us"][0] < INT64 // 2:
        raise HTTPException(400, "input 'now_us' is no time in epoch microseconds")
    return {str(name): data for name, data in values.items()}
