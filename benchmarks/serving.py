"""How long the model server takes to answer, against the same model served by KServe and against the bare model.

    python benchmarks/serving.py BUNDLE [--rates 25,50,100] [--seconds 20] [--soak MINUTES]

BUNDLE is the folder of a trained bundle. Requests come in an open loop: Poisson arrivals at a fixed rate, each latency
counted from the moment at which the request was due, so a server that falls behind cannot hide it. Users are drawn by
Zipf's law with full sequences, 5 % of the candidates are unknown, their number is lognormal around 300 up to 1,000;
and once more 500 in each request. Clicks come from memory, not from a store; answers are logged. Generator and server
have a core each.

The rival is a server of KServe's SDK with the same graph (`kserve_rival.py`), which takes the item vectors of
candidates and clicks as JSON tensors; its clients' work of finding vectors and writing JSON is not counted. The floors
are ONNX Runtime alone, in one process, on requests of the same sizes at the same moments (a core that has slept for
milliseconds computes slower than a busy one); and what the measurement itself takes: the same requests to a server
that reads them and answers with a constant.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from http_load import arrivals, open_loop
from measure import describe_machine

from storyrec.bundle import RANKER_OF_ONE_USER, Bundle
from storyrec.config import Config, save_config
from storyrec.registry import push_bundle, switch_champion
from storyrec.serving.oip import MODEL_NAME
from storyrec.serving.ranking import Clicks, cut_history, ranker_inputs
from storyrec.serving.server import listen
from storyrec.storage import FolderStorage

NOW_US = 20_600 * 86_400_000_000
NUM_USERS, NUM_DISTINCT, NUM_CONNECTIONS = 1_000, 200, 32
UNKNOWN_SHARE, FIXED = 0.05, 500
GENERATOR_CORE, SERVER_CORE = 0, (os.cpu_count() or 1) - 1
SOAK_RATE, SOAK_STEPS = 50.0, 10
BEHIND_MILLISECONDS = 1_000.0
"""A server whose median is beyond it has fallen behind, and is not asked for more a second."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """One request in both protocols: with ids, and with the tensors of the same items."""

    ids: bytes
    tensors: bytes
    inputs: dict[str, Any]


def draw_clicks(bundle: Bundle) -> dict[int, tuple[Clicks, Clicks]]:
    """Users with full sequences of the last days."""
    random, length = np.random.default_rng(1), bundle.config.features.sequence_length

    def drawn(ids_N: npt.NDArray[np.int64]) -> Clicks:
        return Clicks(random.choice(ids_N[1:], length), NOW_US - random.integers(1, 5 * 86_400_000_000, length))

    return {user: (drawn(bundle.stories.ids_N), drawn(bundle.products.ids_N)) for user in range(1, NUM_USERS + 1)}


def draw_requests(bundle: Bundle, clicks: dict[int, tuple[Clicks, Clicks]], *, fixed: bool) -> list[Request]:
    """Requests of Zipf users and candidates of which some are unknown."""
    random = np.random.default_rng(2)
    requests = []
    for _ in range(NUM_DISTINCT):
        user = int(min(random.zipf(1.3), NUM_USERS))
        num = FIXED if fixed else int(np.clip(random.lognormal(np.log(300), 0.5), 1, 1_000))
        candidates = random.choice(bundle.stories.ids_N[1:], num)
        candidates[random.random(num) < UNKNOWN_SHARE] = 2**40
        values = {"user_id": [user], "candidate_ids": candidates.tolist(), "now_us": [NOW_US]}
        ids = [{"name": name, "shape": [len(data)], "datatype": "INT64", "data": data} for name, data in values.items()]
        history = cut_history(bundle, story_clicks=clicks[user][0], product_clicks=clicks[user][1], now_us=NOW_US)
        inputs = ranker_inputs(bundle, history, candidate_ids=candidates, stories=bundle.stories)
        tensors = [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32" if values.dtype == np.float32 else "INT64",
                "data": values.ravel().tolist(),
            }
            for name, values in inputs.items()
        ]
        requests.append(Request(json.dumps({"inputs": ids}).encode(), json.dumps({"inputs": tensors}).encode(), inputs))
    return requests


@contextlib.contextmanager
def serving_ids(bundle: Path, clicks: dict[int, tuple[Clicks, Clicks]], scratch: Path) -> Iterator[tuple[str, int]]:
    """The model server with these clicks on its own core; its address and process id."""
    registry = FolderStorage(scratch / "registry")
    day = Bundle.load(bundle).day
    switch_champion(registry, version=push_bundle(registry, bundle), day=day, expected_version=None)
    settings = Config().model_dump(mode="json")
    settings["locations"] |= {"registry": registry.url}
    settings["serving"] |= {"port": 0, "cache": str(scratch / "cache"), "answers": str(scratch / "answers")}
    save_config(Config.model_validate_json(json.dumps(settings)), scratch / "settings.toml")
    lists = {
        user: [np.asarray(values).tolist() for of in both for values in (of.item_ids_C, of.clicked_us_C)]
        for user, both in clicks.items()
    }
    (scratch / "clicks.json").write_text(json.dumps(lists))
    command = [sys.executable, "-m", "storyrec.serving.rehearsal_server", "settings.toml", "clicks.json"]
    with _on_its_core(command, cwd=scratch) as server:
        yield _said(server).split("http://")[1].split()[0], server.pid


@contextlib.contextmanager
def serving_tensors(bundle: Path, scratch: Path) -> Iterator[tuple[str, int]]:
    """The rival on the same core, in its own environment; its address and process id."""
    with listen("127.0.0.1", 0) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = str(Path(__file__).with_name("kserve_rival.py"))
    command = [sys.executable, "-m", "uv", "run", "--quiet", "--script", script, str(bundle / RANKER_OF_ONE_USER)]
    with _on_its_core([*command, address.split(":")[1]], cwd=scratch) as server:
        while not _is_ready(address):
            assert server.poll() is None, "the rival ended"
            time.sleep(0.5)
        yield address, server.pid


@contextlib.contextmanager
def serving_nothing(scratch: Path) -> Iterator[tuple[str, int]]:
    """A server of constants on the same core; its address and process id."""
    with _on_its_core([sys.executable, __file__, ".", "--constant-server"], cwd=scratch) as server:
        yield _said(server).strip(), server.pid


def serve_constants() -> None:
    """Read each request and answer with as much as scores take; prints the address."""
    import uvicorn
    from starlette.types import Receive, Scope, Send

    answer = json.dumps({"data": [1 / 3] * FIXED}).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    with listen("127.0.0.1", 0) as listener:
        print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _on_its_core(command: Sequence[str], *, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # uv starts the rival as a child
        server.communicate()


def _said(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/models/{MODEL_NAME}/ready").is_success
    except httpx.TransportError:
        return False


def load(address: str, bodies: Sequence[bytes], *, rate: float, seconds: float) -> tuple[Floats, int]:
    """Latencies in milliseconds from the moment each request was due, and how many failed."""
    path = f"/v2/models/{MODEL_NAME}/infer"
    return open_loop(address, path, bodies, rate=rate, seconds=seconds, num_connections=NUM_CONNECTIONS)


def bare(bundle: Bundle, requests: Sequence[Request], *, rate: float, seconds: float) -> Floats:
    """Milliseconds of ONNX Runtime alone in this process, from the moment each request was due."""
    due_N = arrivals(rate=rate, seconds=seconds)
    milliseconds, started = [], time.perf_counter()
    for number, due in enumerate((started + due_N).tolist()):
        time.sleep(max(due - time.perf_counter(), 0))
        bundle.rank_candidates(**requests[number % len(requests)].inputs)
        milliseconds.append((time.perf_counter() - due) * 1e3)
    return np.array(milliseconds)


def report(name: str, milliseconds: Floats, *, rate: float, failed: int = 0) -> None:
    """One row of the table."""
    figures = (*np.percentile(milliseconds, [50, 95, 99]), milliseconds.max())
    print(f"{name:<34} {rate:>8.0f}/s " + " ".join(f"{figure:9.2f}" for figure in figures) + f" {failed:7}", flush=True)


def soak(address: str, pid: int, bodies: Sequence[bytes], *, minutes: float) -> None:
    """Memory of the server over a long time of load."""
    for step in range(SOAK_STEPS + 1):
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes = int(status.split("VmRSS:")[1].split()[0])
        print(f"after {step / SOAK_STEPS * minutes:5.1f} min: {kilobytes / 1024:,.0f} MiB", flush=True)
        if step < SOAK_STEPS:
            milliseconds, failed = load(address, bodies, rate=SOAK_RATE, seconds=minutes * 60 / SOAK_STEPS)
            report("  this server", milliseconds, rate=SOAK_RATE, failed=failed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rates", default="25,50,100")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--constant-server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.constant_server:
        serve_constants()
        return
    path = options.bundle.resolve()
    bundle = Bundle.load(path)
    clicks = draw_clicks(bundle)
    os.sched_setaffinity(0, {SERVER_CORE})
    drawn = {
        name: draw_requests(bundle, clicks, fixed=name == "500 candidates") for name in ("mixed", "500 candidates")
    }
    rates = [float(rate) for rate in options.rates.split(",")]
    floors = {
        (name, rate): bare(bundle, requests, rate=rate, seconds=options.seconds)
        for name, requests in drawn.items()
        for rate in rates
    }
    os.sched_setaffinity(0, {GENERATOR_CORE})
    print(describe_machine())
    print(f"{len(bundle.stories.ids_N) - 1:,} stories, width {bundle.config.model.width}; milliseconds")
    print(f"{'':<34} {'rate':>10} " + " ".join(f"{name:>9}" for name in ("p50", "p95", "p99", "max", "failed")))
    medians: dict[tuple[str, float], dict[str, Floats]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        servers = {
            "this server": serving_ids(path, clicks, Path(scratch)),
            "a constant": serving_nothing(Path(scratch)),
            "KServe": serving_tensors(path, Path(scratch)),
        }
        for kind, server in servers.items():
            with server as (address, pid):
                for name, requests in drawn.items():
                    bodies = [request.tensors if kind == "KServe" else request.ids for request in requests]
                    load(address, bodies, rate=20.0, seconds=2.0)  # warm
                    for rate in rates:
                        milliseconds, failed = load(address, bodies, rate=rate, seconds=options.seconds)
                        report(f"{kind}, {name}", milliseconds, rate=rate, failed=failed)
                        medians.setdefault((name, rate), {})[kind] = np.percentile(milliseconds, [50, 99])
                        if np.median(milliseconds) > BEHIND_MILLISECONDS:
                            break
                if kind == "this server" and options.soak:
                    soak(address, pid, [request.ids for request in drawn["mixed"]], minutes=options.soak)
    for (name, rate), milliseconds in floors.items():
        report(f"ONNX Runtime alone, {name}", milliseconds, rate=rate)
    for (name, rate), by_kind in medians.items():
        if "KServe" not in by_kind:
            continue
        ratios = by_kind["KServe"] / by_kind["this server"]
        print(f"KServe takes {ratios[0]:.1f} times as long at the median, {ratios[1]:.1f} at p99: {name}, {rate:.0f}/s")


if __name__ == "__main__":
    main()
