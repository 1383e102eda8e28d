"""The Open Inference Protocol, version 2, over HTTP: health, metadata and inference of one model."""

import math
from typing import Any

from fastapi import APIRouter, Response

from storyrec.serving.answers import Answer
from storyrec.serving.app import VERSION, respond
from storyrec.serving.bodies import READY, REFUSALS, InferenceRequest, Tensor
from storyrec.serving.body_route import BodyRoute
from storyrec.serving.recommender import Asked, BadRequest, Recommender

MODEL_NAME = "storyrec"
PLATFORM = "onnxruntime_onnx"
INPUTS = (("user_id", [1]), ("candidate_ids", [-1]), ("now_us", [1]))
OUTPUTS = (("scores", "FP32"), ("unknown_candidate_ids", "INT64"))


def oip_routes(recommender: Recommender) -> APIRouter:
    """The routes below /v2."""
    routes = APIRouter(tags=["Open Inference Protocol"], route_class=BodyRoute)
    models = recommender.models
    model_path = f"/v2/models/{MODEL_NAME}"

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "storyrec", "version": VERSION, "extensions": []}

    @routes.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/v2/health/ready", responses=READY)
    @routes.get(model_path + "/ready", responses=READY)
    async def ready() -> Response:
        is_ready = models.bundle is not None
        return respond({"ready": is_ready, "refused": models.refused}, status=200 if is_ready else 503)

    @routes.get(model_path + "/versions/{version}/ready", responses=REFUSALS | {200: READY[200]})
    async def version_ready(version: str) -> Response:
        models.answering(version)
        return respond({"ready": True, "refused": models.refused})

    @routes.get(model_path + "/versions/{version}", responses=REFUSALS)
    async def model_version(version: str) -> Response:
        return described(version)

    @routes.get(model_path, responses=REFUSALS)
    async def model() -> Response:
        return described(None)

    def described(version: str | None) -> Response:
        bundle = models.answering(version).bundle
        metadata = {
            "name": MODEL_NAME,
            "versions": [bundle.version],
            "platform": PLATFORM,
            "day": bundle.day.isoformat(),
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": shape}
                | ({"parameters": {"optional": True}} if name == "now_us" else {})
                for name, shape in INPUTS
            ],
            "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS],
        }
        return respond(metadata, version=bundle.version)

    @routes.post(model_path + "/versions/{version}/infer", responses=REFUSALS)
    async def infer_version(body: InferenceRequest, version: str) -> Response:
        return await _inferred(recommender, body, version=version)

    @routes.post(model_path + "/infer", responses=REFUSALS)
    async def infer(body: InferenceRequest) -> Response:
        return await _inferred(recommender, body, version=None)

    return routes


async def infer_tensors(
    recommender: Recommender, inputs: list[Tensor], *, route: str, request_id: str | None, version: str | None
) -> Answer:
    """Rank the candidates of an inference request, whichever transport brought it.

    Raises:
        BadRequest: an input is missing, twice there or of another length.
        NotServed: no bundle serves, or not this version.
    """
    values = {tensor.name: tensor.data for tensor in inputs}
    if len(values) != len(inputs):
        raise BadRequest("an input is given twice")
    for name in ("user_id", "candidate_ids"):
        if name not in values:
            raise BadRequest(f"input '{name}' is missing")
    for name, data in values.items():
        if name != "candidate_ids" and len(data) != 1:
            raise BadRequest(f"input '{name}' takes one value, not {len(data)}")
    asked = Asked(
        route=route,
        user_id=values["user_id"][0],
        request_id=request_id,
        now_us=values["now_us"][0] if "now_us" in values else None,
        version=version,
    )
    return await recommender.rank(asked, candidate_ids=values["candidate_ids"])


async def _inferred(recommender: Recommender, body: InferenceRequest, *, version: str | None) -> Response:
    for tensor in body.inputs:
        if min(tensor.shape, default=-1) < 0 or math.prod(tensor.shape) != len(tensor.data):
            raise BadRequest(f"input '{tensor.name}' has {len(tensor.data)} values and shape {tensor.shape}")
    answer = await infer_tensors(recommender, body.inputs, route="infer", request_id=body.id, version=version)
    values = (answer.scores_B.tolist(), answer.candidate_ids_B[answer.unknown_B].tolist())
    content = {
        "model_name": MODEL_NAME,
        "model_version": answer.model_version,
        "parameters": {"sequences": answer.looked.origin},
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}
            for (name, datatype), data in zip(OUTPUTS, values, strict=True)
        ],
    }
    return respond(content if body.id is None else {"id": body.id, **content}, version=answer.model_version)
