"""The rehearsal asks the real server process; what it says is compared with the offline scores."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from storyrec.bundle import Bundle
from storyrec.evaluate import score_instances
from storyrec.manifest import seal_folder
from storyrec.rehearsal import NUM_CANDIDATES, rehearse
from trained import World


@pytest.fixture(scope="module")
def scores(world: World, packed: Path) -> np.ndarray:
    return score_instances(Bundle.load(packed), world.data, world.data.holdout)


def test_the_server_answers_golden_requests_as_offline_scoring_does(
    world: World, packed: Path, scores: np.ndarray
) -> None:
    seen = rehearse(packed, data=world.data, scores_B=scores)
    assert seen.error is None
    assert seen.version == Bundle.load(packed).version
    assert seen.largest_difference is not None
    assert 0 <= seen.largest_difference < 1e-6
    assert seen.num_requests == 64
    assert seen.num_with_clicks is not None
    assert 40 < seen.num_with_clicks <= 64
    assert seen.num_candidates == NUM_CANDIDATES
    assert seen.latency_ms_median is not None
    assert seen.latency_ms_p95 is not None
    assert 0 < seen.latency_ms_median <= seen.latency_ms_p95
    json.dumps(asdict(seen))


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_a_difference_between_served_and_offline_scores_is_found(
    world: World, packed: Path, scores: np.ndarray, wrong: float
) -> None:
    seen = rehearse(packed, data=world.data, scores_B=scores + wrong)
    assert seen.largest_difference == pytest.approx(wrong, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("damage", ["changed", "nan", "no ranker"])
def test_a_bundle_that_the_server_does_not_take_is_an_error_with_its_reason(
    world: World, packed: Path, scores: np.ndarray, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    said = "no probabilities"
    if damage == "changed":
        (broken / "ranker.onnx").write_bytes(b"other")
        said = "ranker.onnx was changed"
    elif damage == "nan":
        file = broken / "items" / "story_vectors.npy"
        np.save(file, np.load(file) * np.nan)
        seal_folder(broken, day=world.data.day)
    else:
        (broken / "ranker.onnx").write_bytes(b"no model")
        seal_folder(broken, day=world.data.day)
        said = "cannot be used"
    seen = rehearse(broken, data=world.data, scores_B=scores)
    assert seen.error is not None
    assert said in seen.error
    assert (seen.version, seen.largest_difference, seen.latency_ms_p95) == (None, None, None)
