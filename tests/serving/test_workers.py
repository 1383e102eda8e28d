"""Several processes behind one port: one cache, figures of all of them, and gRPC beside HTTP."""

import os
import signal
import time
from pathlib import Path

import grpc
import httpx
import pytest
from served_world import DAYS, INFER, body, deploy, free_port, outputs, running_server

from storyrec.serving import open_inference_pb2 as pb
from storyrec.serving.open_inference_pb2_grpc import GRPCInferenceServiceStub
from storyrec.storage import FolderStorage

NUM_REQUESTS = 40


def workers_of(settings: Path) -> set[int]:
    """The worker processes of the server with these settings, by what /proc says."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue  # it has just ended
    servers = {pid for pid, command in commands.items() if str(settings) in command}
    return {pid for pid, command in commands.items() if parents[pid] in servers and "spawn_main" in command}


@pytest.mark.slow
def test_workers_share_the_port_and_the_figures_and_one_that_dies_is_replaced(packed: Path, tmp_path: Path) -> None:
    registry = FolderStorage(tmp_path / "registry")
    deploy(registry, packed, tmp_path / "first", day=DAYS[0])
    port = free_port()
    with running_server(tmp_path, registry.url, workers=2, grpc_port=port) as address:

        def ask() -> list[float]:
            return outputs(httpx.post(f"{address}{INFER}", json=body(1, [1_000, 1_001]), timeout=120))["scores"]

        scores = ask()
        for _ in range(NUM_REQUESTS):
            assert ask() == scores
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        (count,) = [line for line in lines if line.startswith("storyrec_request_seconds_count") and "/infer" in line]
        assert float(count.rsplit(" ", 1)[1]) == NUM_REQUESTS + 1
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            asked = pb.ModelInferRequest(model_name="storyrec")
            for name, data in (("user_id", [1]), ("candidate_ids", [1_000, 1_001])):
                contents = pb.InferTensorContents(int64_contents=data)
                asked.inputs.add(name=name, datatype="INT64", shape=[len(data)], contents=contents)
            answer = GRPCInferenceServiceStub(channel).ModelInfer(asked, wait_for_ready=True, timeout=30)
            assert list(answer.outputs[0].contents.fp32_contents) == scores
        before = workers_of(tmp_path / "settings.toml")
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        deadline = time.monotonic() + 120
        while len(after := workers_of(tmp_path / "settings.toml")) < 2 or min(before) in after:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert ask() == scores
