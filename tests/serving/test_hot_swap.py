"""The pointer moves while clients ask: no request fails, and each answer is that of the version it names."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from served_world import DAYS, INFER, body, deploy, outputs, running_server

from storyrec.bundle import Bundle
from storyrec.registry import read_champion, switch_champion
from storyrec.serving.ranking import NO_CLICKS, rank
from storyrec.storage import FolderStorage

NUM_CLIENTS = 4
NUM_FLIPS = 4
IDS = [1_000, 1_001, 1_002, 999_999]


def drifted(packed: Path, folder: Path) -> Path:
    """The same bundle with other item vectors, so with other scores."""
    import shutil

    shutil.copytree(packed, folder)
    path = folder / "items" / "story_vectors.npy"
    np.save(path, np.load(path)[::-1].copy())
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_clients_see_each_versions_own_scores_while_the_pointer_flips(
    packed: Path, tmp_path: Path, workers: int
) -> None:
    registry = FolderStorage(tmp_path / "registry")
    versions = [
        deploy(registry, packed, tmp_path / "first", day=DAYS[0]),
        deploy(registry, drifted(packed, tmp_path / "drifted"), tmp_path / "second", day=DAYS[1]),
    ]
    expected = {
        version: rank(
            Bundle.load(tmp_path / name), story_clicks=NO_CLICKS, product_clicks=NO_CLICKS, now_us=1, candidate_ids=IDS
        )
        for version, name in zip(versions, ("first", "second"), strict=True)
    }
    assert not np.allclose(*expected.values(), atol=1e-3)
    seen: list[str] = []
    with running_server(tmp_path, registry.url, workers=workers) as address:
        httpx.post(f"{address}{INFER}", json=body(1, IDS, now_us=1), timeout=60)  # until it has started
        stop = time.monotonic() + 100

        def ask_until_stopped(_: int) -> None:
            with httpx.Client(base_url=address, timeout=20) as client:
                while time.monotonic() < stop:
                    answer = client.post(INFER, json=body(1, IDS, now_us=1))
                    assert answer.status_code == 200, answer.text
                    version = answer.json()["model_version"]
                    np.testing.assert_allclose(outputs(answer)["scores"], expected[version], atol=1e-6)
                    seen.append(version)

        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            clients = [pool.submit(ask_until_stopped, number) for number in range(NUM_CLIENTS)]
            try:
                for version in itertools.islice(itertools.cycle(versions), NUM_FLIPS):
                    pointer = read_champion(registry)
                    assert pointer is not None
                    switch_champion(registry, version=version, day=DAYS[0], expected_version=pointer.champion.version)
                    before, deadline = len(seen), time.monotonic() + 30
                    while version not in seen[before:] and time.monotonic() < deadline:
                        time.sleep(0.02)
                        for client in clients:
                            if client.done():
                                client.result()
                    assert version in seen[before:]
            finally:
                stop = 0.0
            for client in clients:
                client.result()
    assert set(seen) == set(versions)
