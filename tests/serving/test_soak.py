"""A server under load for a minute: no request fails, and its memory stays what it was."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served_world import DAYS, INFER, body, deploy, running_server

from storyrec.storage import FolderStorage

NUM_CLIENTS, NUM_PARTS, PART_SECONDS = 4, 4, 20.0
CLICKS = [{"item_id": item_id, "clicked_us": 1_773_057_600_000_000} for item_id in range(1_000, 1_040)]
REQUESTS = {
    INFER: body(1, list(range(1_000, 1_400))),
    "/v1/rank": {"user_id": 1, "candidates": list(range(1_000, 1_400))},
    "/v1/recommend": {"story_clicks": CLICKS, "product_clicks": CLICKS},
    "/v1/explain": {"story_clicks": CLICKS, "candidate": 1_000},
}


def resident_megabytes(settings: Path) -> float:
    """Of the one process with these settings."""
    commands = {path.parent: path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline")}
    (process,) = [path for path, command in commands.items() if str(settings) in command]
    return int((process / "status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
def test_memory_is_flat_under_load(packed: Path, tmp_path: Path) -> None:
    registry = FolderStorage(tmp_path / "registry")
    deploy(registry, packed, tmp_path / "first", day=DAYS[0])
    settings = {"answers": str(tmp_path / "answers"), "answers_seconds": 1.0}
    with running_server(tmp_path, registry.url, **settings) as address:

        def ask_for(seconds: float) -> int:
            ends, asked = time.monotonic() + seconds, 0
            with httpx.Client(base_url=address, timeout=20) as client:
                while time.monotonic() < ends:
                    for path, content in REQUESTS.items():
                        assert client.post(path, json=content).status_code == 200
                        asked += 1
                    client.post("/v1/rank", content=json.dumps({"junk": "x" * 1_000}))
            return asked

        megabytes, num_asked = [], []
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            for _ in range(NUM_PARTS):
                num_asked.append(sum(pool.map(ask_for, [PART_SECONDS] * NUM_CLIENTS)))
                megabytes.append(resident_megabytes(tmp_path / "settings.toml"))
    assert min(num_asked) > 500
    # the first part fills pools; after that even a kilobyte kept of each request would show
    assert max(megabytes[2:]) - megabytes[1] < 1e-3 * sum(num_asked[2:]), megabytes
