"""The rehearsal: a packed bundle in the real server process, asked golden requests before it may be deployed.

The bundle is deployed to a registry that is thrown away; the server fetches and verifies it as on any day. Held-out
impressions are asked for one request at a time, and must get the scores of the offline evaluation.
Suffixes: B impressions, G golden requests.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import httpx
import numpy as np

from storyrec.config import Config, save_config
from storyrec.data.dataset import Dataset
from storyrec.features.sequences import ClickLog
from storyrec.metrics import Floats, Integers
from storyrec.registry import push_bundle, switch_champion
from storyrec.serving.oip import MODEL_NAME
from storyrec.storage import FolderStorage

NUM_GOLDEN = 64
NUM_TIMED = 100
NUM_CANDIDATES = 500
START_SECONDS = 120.0
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Rehearsal:
    """What the server did; the figures are None where there is an error.

    Attributes:
        error: why it did not serve the bundle; None: it did.
        version: that it says it serves.
        num_requests: golden requests answered.
        num_with_clicks: of users who had clicked before.
        largest_difference: |served - offline| over the golden requests, probability.
        num_candidates: of each timed request.
        latency_ms_median, latency_ms_p95: of timed requests, one at a time, over loopback.
    """

    error: str | None = None
    version: str | None = None
    num_requests: int | None = None
    num_with_clicks: int | None = None
    largest_difference: float | None = None
    num_candidates: int | None = None
    latency_ms_median: float | None = None
    latency_ms_p95: float | None = None


def rehearse(bundle: Path, *, data: Dataset, scores_B: Floats) -> Rehearsal:
    """Serve a bundle and ask it; a server that fails is a result, not an error.

    Args:
        bundle: folder that `pack_bundle` wrote.
        data: dataset with the held-out impressions.
        scores_B: the bundle's offline scores of them, [B].
    """
    index_G = _golden(data)
    try:
        with tempfile.TemporaryDirectory(prefix="storyrec-") as scratch:
            users = {int(user) for user in data.holdout.user_ids_B[index_G]}
            (Path(scratch) / "clicks.json").write_text(json.dumps({user: _clicks(data, user) for user in users}))
            with _serving(bundle, data, Path(scratch)) as address, httpx.Client(base_url=address) as client:
                client.timeout = httpx.Timeout(ANSWER_SECONDS)
                return _ask(client, data, scores_B=scores_B, index_G=index_G)
    except Exception as error:  # whatever keeps the bundle from serving keeps it from being blessed
        return Rehearsal(error=f"{type(error).__name__}: {error}")


def _golden(data: Dataset) -> Integers:
    """One held-out impression of each golden request, spread evenly over the users."""
    num = len(data.holdout)
    return np.unique(np.linspace(0, num - 1, min(num, NUM_GOLDEN)).astype(np.int64))


def _ask(client: httpx.Client, data: Dataset, *, scores_B: Floats, index_G: Integers) -> Rehearsal:
    holdout = data.holdout
    largest, with_clicks, version = 0.0, 0, client.get(f"/v2/models/{MODEL_NAME}").raise_for_status().json()["versions"]
    for row in index_G:
        user, now_us = holdout.user_ids_B[row], holdout.shown_us_B[row]
        rows_B = np.flatnonzero((holdout.user_ids_B == user) & (holdout.shown_us_B == now_us))
        story_ids = data.stories.item_ids_N[holdout.story_rows_B[rows_B]]
        served = _infer(client, user_id=int(user), now_us=int(now_us), candidate_ids=story_ids)
        difference = np.abs(served - scores_B[rows_B]).max()
        largest = float(np.maximum(largest, difference))  # a NaN stays one
        with_clicks += bool(holdout.story_stop_B[row] > holdout.story_start_B[row])
    generator = np.random.default_rng(0)
    milliseconds = np.empty(NUM_TIMED)
    for number, row in enumerate(np.resize(index_G, NUM_TIMED)):
        story_ids = data.stories.item_ids_N[generator.integers(1, len(data.stories), NUM_CANDIDATES)]
        user, now_us = int(holdout.user_ids_B[row]), int(holdout.shown_us_B[row])
        started = time.perf_counter()
        _infer(client, user_id=user, now_us=now_us, candidate_ids=story_ids)
        milliseconds[number] = (time.perf_counter() - started) * 1e3
    return Rehearsal(
        version=version[0],
        num_requests=len(index_G),
        num_with_clicks=with_clicks,
        largest_difference=largest,
        num_candidates=NUM_CANDIDATES,
        latency_ms_median=float(np.median(milliseconds)),
        latency_ms_p95=float(np.quantile(milliseconds, 0.95)),
    )


def _infer(client: httpx.Client, *, user_id: int, now_us: int, candidate_ids: Integers) -> Floats:
    values = {"user_id": [user_id], "candidate_ids": candidate_ids.tolist(), "now_us": [now_us]}
    inputs = [{"name": name, "shape": [len(data)], "datatype": "INT64", "data": data} for name, data in values.items()]
    answer = client.post(f"/v2/models/{MODEL_NAME}/infer", json={"inputs": inputs})
    if answer.status_code != 200:
        raise ValueError(f"the server answered {answer.status_code}: {answer.text[:500]}")
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    return np.array(outputs["scores"], np.float64)


def _clicks(data: Dataset, user_id: int) -> list[list[int]]:
    """All clicks of a user: cutting them is the server's work."""

    def of(log: ClickLog) -> list[list[int]]:
        start, stop = np.searchsorted(log.user_ids_C, [user_id, user_id + 1])
        return [log.item_ids_C[start:stop].tolist(), log.clicked_us_C[start:stop].tolist()]

    return of(data.story_clicks) + of(data.product_clicks)


@contextlib.contextmanager
def _serving(bundle: Path, data: Dataset, scratch: Path) -> Iterator[str]:
    """The server as a process over a registry that has this bundle alone; its address."""
    registry = FolderStorage(scratch / "registry")
    version = push_bundle(registry, bundle)
    switch_champion(registry, version=version, day=data.day, expected_version=None)
    settings = Config().model_dump(mode="json")
    settings["locations"] |= {"registry": registry.url, "work": str(scratch / "work")}
    settings["serving"] |= {"port": 0, "cache": str(scratch / "cache"), "store_seconds": ANSWER_SECONDS}
    save_config(Config.model_validate_json(json.dumps(settings)), scratch / "settings.toml")
    command = [sys.executable, "-m", "storyrec.serving.rehearsal_server", "settings.toml", "clicks.json"]
    with (scratch / "errors").open("w+") as errors:
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=scratch
        )
        timer = Timer(START_SECONDS, server.kill)
        timer.start()
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            timer.cancel()
            if address is None:
                errors.seek(0)
                raise ValueError(f"the server did not start: {errors.read()[-2_000:].strip() or 'it said nothing'}")
            yield address.group()
        finally:
            timer.cancel()
            server.kill()
            server.communicate()
