"""The Open Inference Protocol over gRPC gives what HTTP gives."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from served_world import INFER, body, client_of, free_port, outputs, recommender_of

from storyrec.errors import PlatformError
from storyrec.serving import open_inference_pb2 as pb
from storyrec.serving.grpc_server import ROUTE, start_grpc
from storyrec.serving.metrics import REQUESTS
from storyrec.serving.open_inference_pb2_grpc import GRPCInferenceServiceStub
from storyrec.serving.served import ServedBundle
from storyrec.storage import FolderStorage


@contextmanager
def stub_of(champion: ServedBundle) -> Iterator[GRPCInferenceServiceStub]:
    with channel_to(champion) as channel:
        yield GRPCInferenceServiceStub(channel)


@contextmanager
def channel_to(champion: ServedBundle) -> Iterator[grpc.Channel]:
    port = free_port()
    start = partial(start_grpc, recommender_of(champion), host="127.0.0.1", port=port, max_body_bytes=20_000)
    with start_blocking_portal() as portal, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        server = portal.call(start)
        try:
            yield channel
        finally:  # a portal waits for the server for ever
            portal.call(server.stop, 0)


def request(candidate_ids: list[int], *, user_id: int = 7, raw: bool = False, **more: str) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name="storyrec", **more)
    for name, data in (("user_id", [user_id]), ("candidate_ids", candidate_ids)):
        contents = None if raw else pb.InferTensorContents(int64_contents=data)
        asked.inputs.add(name=name, datatype="INT64", shape=[len(data)], contents=contents)
        if raw:
            asked.raw_input_contents.append(np.array(data, "<i8").tobytes())
    return asked


def test_scores_are_those_of_http_typed_and_raw(champion: ServedBundle) -> None:
    assert champion.bundle is not None
    ids = [*champion.bundle.stories.ids_N[1:20].tolist(), 999_999]
    with client_of(champion) as client:
        expected = outputs(client.post(INFER, json=body(7, ids)))
    with stub_of(champion) as stub:
        typed = stub.ModelInfer(request(ids, id="mine", model_version=champion.bundle.version))
        raw = stub.ModelInfer(request(ids, raw=True))
    assert (typed.id, typed.model_name, typed.model_version) == ("mine", "storyrec", champion.bundle.version)
    assert typed.parameters["sequences"].string_param == "none"
    found = {output.name: output.contents for output in typed.outputs}
    assert list(found["scores"].fp32_contents) == expected["scores"]
    assert list(found["unknown_candidate_ids"].int64_contents) == [999_999]
    assert [(output.name, list(output.shape)) for output in raw.outputs] == [
        ("scores", [20]),
        ("unknown_candidate_ids", [1]),
    ]
    assert np.frombuffer(raw.raw_output_contents[0], "<f4").tolist() == expected["scores"]
    assert np.frombuffer(raw.raw_output_contents[1], "<i8").tolist() == [999_999]


def test_health_and_metadata(champion: ServedBundle, tmp_path: Path) -> None:
    assert champion.bundle is not None
    version = champion.bundle.version
    with stub_of(champion) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name="storyrec")).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name="storyrec", version=version)).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="storyrec", version="0")).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
        assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "storyrec"
        model = stub.ModelMetadata(pb.ModelMetadataRequest(name="storyrec"))
        assert list(model.versions) == [version]
        assert [tensor.name for tensor in model.inputs] == ["user_id", "candidate_ids", "now_us"]
    with stub_of(ServedBundle(FolderStorage(tmp_path / "none"), tmp_path / "empty")) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request([1]))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def counted(status: str) -> float:
    """Requests without an answer that ended so."""
    return float(REQUESTS.labels(ROUTE, "", status)._value.get())


def broken(**changes: object) -> pb.ModelInferRequest:
    """A good request with its last input changed."""
    asked = request([1_000, 1_001])
    for name, value in changes.items():
        if name == "shape":
            del asked.inputs[-1].shape[:]
            asked.inputs[-1].shape.extend(value)  # type: ignore[arg-type]
        else:
            setattr(asked.inputs[-1], name, value)
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (pb.ModelInferRequest(model_name="storyrec"), "INVALID_ARGUMENT", "'user_id' is missing"),
        (pb.ModelInferRequest(model_name="other"), "NOT_FOUND", "no model 'other'"),
        (request([1], model_version="0"), "NOT_FOUND", "does not serve"),
        (request([]), "INVALID_ARGUMENT", "1 to 50"),
        (request(list(range(51))), "INVALID_ARGUMENT", "1 to 50"),
        (request(list(range(10**9, 10**9 + 9_000))), "RESOURCE_EXHAUSTED", "larger"),
        (broken(shape=[3]), "INVALID_ARGUMENT", "2 values and shape [3]"),
        (broken(datatype="FP32"), "INVALID_ARGUMENT", "datatype"),
        (broken(name="users"), "INVALID_ARGUMENT", "'users'"),
        (request([1_000], id="x" * 201), "INVALID_ARGUMENT", "201 characters"),
    ],
)
def test_what_cannot_be_answered_is_told_why(
    champion: ServedBundle, asked: pb.ModelInferRequest, code: str, said: str
) -> None:
    before = counted("error")
    with stub_of(champion) as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(asked)
        assert stub.ModelInfer(request([1_000])).model_name == "storyrec"
    assert (refused.value.code().name, said in refused.value.details()) == (code, True), refused.value.details()
    assert counted("error") == before


@pytest.mark.parametrize(("call", "code"), [("ModelInfer", "INVALID_ARGUMENT"), ("Nonsense", "UNIMPLEMENTED")])
def test_bytes_that_are_no_message_are_the_clients_error(
    champion: ServedBundle, caplog: pytest.LogCaptureFixture, call: str, code: str
) -> None:
    with channel_to(champion) as channel:
        ask = channel.unary_unary(f"/inference.GRPCInferenceService/{call}")
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"\xff\xff")
        assert GRPCInferenceServiceStub(channel).ModelInfer(request([1_000], id="x" * 200)).id == "x" * 200
    assert refused.value.code().name == code
    assert not caplog.records


def test_an_unknown_model_counts_as_refused(champion: ServedBundle) -> None:
    before = counted("refused")
    with stub_of(champion) as stub, pytest.raises(grpc.RpcError):
        stub.ModelInfer(pb.ModelInferRequest(model_name="other"))
    assert counted("refused") == before + 1


def test_a_port_that_cannot_be_had_is_named(champion: ServedBundle) -> None:
    with pytest.raises(PlatformError, match="port 9"):
        asyncio.run(start_grpc(recommender_of(champion), host="192.0.2.1", port=9, max_body_bytes=1_000))
