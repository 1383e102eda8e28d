"""The Open Inference Protocol over gRPC: the same ids in and scores out as over HTTP."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeAlias

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from storyrec.errors import PlatformError
from storyrec.serving import open_inference_pb2 as pb
from storyrec.serving.answers import Answer
from storyrec.serving.app import VERSION
from storyrec.serving.bodies import MAX_ID_LENGTH, Tensor
from storyrec.serving.metrics import REQUESTS, SECONDS
from storyrec.serving.oip import INPUTS, MODEL_NAME, OUTPUTS, PLATFORM, infer_tensors
from storyrec.serving.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from storyrec.serving.recommender import BadRequest, Recommender
from storyrec.serving.served import NotServed

ROUTE = "grpc infer"
Context: TypeAlias = grpc.aio.ServicerContext


async def start_grpc(recommender: Recommender, *, host: str, port: int, max_body_bytes: int) -> grpc.aio.Server:
    """Serve over gRPC from now on, in this event loop; several processes may share a port.

    Args:
        recommender: answers.
        host, port: where.
        max_body_bytes: a larger request is refused with RESOURCE_EXHAUSTED.

    Raises:
        PlatformError: the port is taken or the address is not this machine's.
    """
    options = [("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", max_body_bytes)]
    server = grpc.aio.server(options=options, interceptors=[Malformed()])
    add_GRPCInferenceServiceServicer_to_server(InferenceService(recommender), server)  # type: ignore[no-untyped-call]
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise PlatformError(
            f"cannot listen on port {port}",
            expected="a free port of this machine",
            where=f"{host}:{port}",
            remedy="stop what uses it, or set another serving.grpc_port",
        ) from error
    await server.start()
    return server


class Malformed(grpc.aio.ServerInterceptor):
    """Refuses bytes that are no message of the protocol; grpc alone takes them for an error of ours."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The call's handler, with a parser that does not raise."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None

        def parse(content: bytes) -> Message | None:
            try:
                parsed: Message = handler.request_deserializer(content)
            except DecodeError:
                return None
            return parsed

        async def answer(request: Message | None, context: Context) -> Message:
            if request is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this call")
            answered: Message = await handler.unary_unary(request, context)
            return answered

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


class InferenceService(GRPCInferenceServiceServicer):
    """The protocol's six calls."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender, self._models = recommender, recommender.models

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._models.bundle is not None)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            self._models.answering(request.version or None)
        except NotServed:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=request.name == MODEL_NAME)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="storyrec", version=VERSION)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        await _require_model(request.name, context)
        try:
            bundle = self._models.answering(request.version or None).bundle
        except NotServed as error:
            await _refuse(error, context)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=MODEL_NAME,
            versions=[bundle.version],
            platform=PLATFORM,
            inputs=[tensor(name=name, datatype="INT64", shape=shape) for name, shape in INPUTS],
            outputs=[tensor(name=name, datatype=datatype, shape=[-1]) for name, datatype in OUTPUTS],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        started, version, status = time.perf_counter(), "", "refused"
        try:
            await _require_model(request.model_name, context)
            status = "error"
            if len(request.id) > MAX_ID_LENGTH:
                raise BadRequest(f"the id has {len(request.id)} characters; it may have {MAX_ID_LENGTH}")
            answer = await infer_tensors(
                self._recommender,
                _tensors(request),
                route=ROUTE,
                request_id=request.id or None,
                version=request.model_version or None,
            )
            version, status = answer.model_version, "ok"
            return _response(answer, request)
        except (BadRequest, NotServed) as error:
            status = "refused"
            await _refuse(error, context)
        finally:
            REQUESTS.labels(ROUTE, version, status).inc()
            SECONDS.labels(ROUTE).observe(time.perf_counter() - started)


def _tensors(request: pb.ModelInferRequest) -> list[Tensor]:
    """The inputs, checked as over HTTP; their values may come typed, or as raw bytes beside all of them."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"{len(raw)} raw contents for {len(request.inputs)} inputs")
    tensors = []
    for place, given in enumerate(request.inputs):
        if raw and len(raw[place]) % 8:
            raise BadRequest(f"the raw content of input '{given.name}' is no row of 8-byte integers")
        data = np.frombuffer(raw[place], "<i8").tolist() if raw else list(given.contents.int64_contents)
        try:
            tensors.append(Tensor(name=given.name, shape=list(given.shape), datatype=given.datatype, data=data))  # type: ignore[arg-type]
        except ValidationError as error:
            problem = error.errors()[0]
            raise BadRequest(f"input '{given.name}': {problem['loc'][0]}: {problem['msg']}") from error
        if min(given.shape, default=-1) < 0 or math.prod(given.shape) != len(data):
            raise BadRequest(f"input '{given.name}' has {len(data)} values and shape {list(given.shape)}")
    return tensors


def _response(answer: Answer, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=MODEL_NAME,
        model_version=answer.model_version,
        id=request.id,
        parameters={"sequences": pb.InferParameter(string_param=answer.looked.origin)},
    )
    unknown_ids = answer.candidate_ids_B[answer.unknown_B]
    scores, unknown = (
        response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        for (name, datatype), values in zip(OUTPUTS, (answer.scores_B.tolist(), unknown_ids.tolist()), strict=True)
    )
    if request.raw_input_contents:  # as it came in
        response.raw_output_contents.extend([answer.scores_B.tobytes(), unknown_ids.tobytes()])
    else:
        scores.contents.fp32_contents.extend(answer.scores_B.tolist())
        unknown.contents.int64_contents.extend(unknown_ids.tolist())
    return response


async def _require_model(name: str, context: Context) -> None:
    if name != MODEL_NAME:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no model '{name}'; '{MODEL_NAME}' is served")


async def _refuse(error: BadRequest | NotServed, context: Context) -> NoReturn:
    if isinstance(error, BadRequest):
        code = grpc.StatusCode.INVALID_ARGUMENT
    else:
        code = grpc.StatusCode.NOT_FOUND if error.is_ready else grpc.StatusCode.UNAVAILABLE
    await context.abort(code, str(error))
    raise AssertionError("abort raises")
