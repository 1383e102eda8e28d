"""A deployed bundle of drawn weights, and a server over it in this process or in one of its own."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from storyrec.config import Config, save_config
from storyrec.manifest import seal_folder
from storyrec.registry import push_bundle, read_champion, switch_champion
from storyrec.serving.answer_log import AnswerLog
from storyrec.serving.app import create_app
from storyrec.serving.recommender import Limits, Recommender
from storyrec.serving.served import ServedBundle
from storyrec.serving.split import Split
from storyrec.serving.store import Sequences, SequenceStore
from storyrec.storage import Storage

NOW_US = 20_600 * 86_400_000_000
DAYS = (date(2026, 3, 4), date(2026, 3, 5))
INFER = "/v2/models/storyrec/infer"


def deploy(registry: Storage, packed: Path, folder: Path, *, day: date) -> str:
    """Deploy a copy of a bundle under another day, so another version; the gate is not asked."""
    shutil.copytree(packed, folder)
    version = seal_folder(folder, day=day).version
    push_bundle(registry, folder)
    pointer = read_champion(registry)
    switch_champion(registry, version=version, day=day, expected_version=pointer.champion.version if pointer else None)
    return version


def recommender_of(
    models: ServedBundle | Split,
    *,
    sequences: Sequences | None = None,
    answers: AnswerLog | None = None,
    **store: float,
) -> Recommender:
    """What answers, with a clock that stands still."""
    return Recommender(
        models if isinstance(models, Split) else Split(models),
        store=SequenceStore(sequences, **{"deadline_seconds": 5.0, **store}),
        limits=Limits(max_candidates=50, max_clicks=30, num_retrieved=12),
        answers=answers,
        now_us=lambda: NOW_US,
    )


@contextmanager
def client_of(
    models: ServedBundle | Split,
    *,
    sequences: Sequences | None = None,
    answers: AnswerLog | None = None,
    **store: float,
) -> Iterator[TestClient]:
    """A client of the application in this process; `store` are arguments of `SequenceStore`."""
    recommender = recommender_of(models, sequences=sequences, answers=answers, **store)
    app = create_app(recommender, num_stories=3, max_body_bytes=20_000, body_seconds=0.5)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def body(user_id: int, candidate_ids: list[int], **more: Any) -> dict[str, Any]:
    inputs = [
        {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user_id]},
        {"name": "candidate_ids", "shape": [len(candidate_ids)], "datatype": "INT64", "data": candidate_ids},
    ]
    if "now_us" in more:
        inputs.append({"name": "now_us", "shape": [1], "datatype": "INT64", "data": [more.pop("now_us")]})
    return {"inputs": inputs, **more}


def outputs(answer: httpx.Response) -> dict[str, list[Any]]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


@contextmanager
def running_server(tmp_path: Path, registry: str, **settings: Any) -> Iterator[str]:
    """`storyrec serve` as a process; its address."""
    config = Config.model_validate(
        {
            "locations": {"registry": registry, "work": str(tmp_path / "work")},
            "serving": {"port": 0, "poll_seconds": 0.05, "cache": str(tmp_path / "served"), **settings},
        }
    )
    save_config(config, tmp_path / "settings.toml")
    server = subprocess.Popen(
        [sys.executable, "-m", "storyrec.cli", "serve", "--config", str(tmp_path / "settings.toml")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "STORYREC_FEATURE_REPO": str(tmp_path / "none")},
    )
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        yield address.group()
    finally:
        server.terminate()
        assert server.wait(20) in (0, -15)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
