"""The study of the real sample: its statistics, honest retrieval figures, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from srd_source import cover, pair, write, write_vocabulary
from storyrec.errors import DataError
from storyrec.experiments.srd_sample import HALVES, RESULT, TABLE, read_sample, retrieve, run_srd_sample

REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (REAL / "srd1_pretrain_sample.txt.gz").exists(), reason="the real sample is not beside")
def test_the_four_statistics_of_the_real_sample_come_out(tmp_path: Path) -> None:
    (tmp_path / "srd1_pretrain_sample.txt.gz").symlink_to(REAL / "srd1_pretrain_sample.txt.gz")
    sample, statistics = read_sample(tmp_path, vocabulary=REAL / "bert_chinese_vocab.txt")
    assert round(statistics["story_title_length"], 1) == 13.0
    assert round(statistics["product_title_length"], 1) == 28.5
    assert statistics["largest_norm_error"] < 1e-4
    assert round(statistics["own_cover_distance"], 2) == 1.07
    assert round(statistics["other_cover_distance"], 2) == 1.40
    assert round(statistics["raw_cover_hit_at_1"], 3) == 0.453
    assert round(statistics["raw_cover_hit_at_5"], 3) == 0.602
    shares = [round(100 * share, 1) for share in statistics["title_similarity_shares"]]
    assert shares == [37.5, 19.5, 14.1, 10.2, 18.8]
    # the words that the extractors read are the file's tokens, one for one
    lengths = [(sample.stories.tokens_NW[half[:, 0]] > 0).sum(axis=1) for half in sample.halves]
    assert lengths[0].mean() == statistics["story_title_length"]
    first_M2 = sample.halves[0]
    assert (sample.products.tokens_NW[first_M2[:, 1]] > 0).sum(axis=1).mean() == statistics["product_title_length"]
    assert not (sample.stories.tokens_NW == 1).any()


def test_retrieval_counts_hits_and_recall_as_done_by_hand() -> None:
    stories = np.arange(7, dtype=np.float32)[:, None]
    products = np.array([[0.1], [0.2], [6.0], [6.1], [3.0], [5.9], [0.0]], np.float32)
    mounted = np.eye(7, dtype=bool)
    mounted[0, 6] = True  # the farthest one: found of the two is one
    found = retrieve(products, stories, mounted_MM=mounted)
    # own story's rank: 1, 2, 5, 4, 3 (equal distances in order of row), 2, 7
    assert found["hit_at_1"] == pytest.approx(1 / 7)
    assert found["hit_at_5"] == pytest.approx(6 / 7)
    assert found["recall_at_5"] == pytest.approx(5.5 / 7)


def make(folder: Path, *, num_lines: int) -> Path:
    rows = [pair(100 + line, 900 + line) + pair(200 + line, 950 + line) for line in range(num_lines)]
    rows[0] = pair(100, 900) + pair(200, 901)  # product 901 is in both halves
    write(folder / "SRD-1_pretrain_data.txt", rows)
    return write_vocabulary(folder / "vocab.txt")


def test_a_run_trains_on_one_half_and_asks_for_the_other(tmp_path: Path) -> None:
    vocabulary = make(tmp_path / "in", num_lines=12)
    result = run_srd_sample(tmp_path / "in", out=tmp_path / "out", seeds=[1], vocabulary=vocabulary)
    assert json.loads((tmp_path / "out" / RESULT).read_text()) == result
    assert [(run["held_out"], run["seed"]) for run in result["runs"]] == [(half, 1) for half in HALVES]
    for run in result["runs"]:
        # 12 pairs, without the one that shares its product with the half asked for
        assert run["num_training_pairs"] + run["num_validation_pairs"] == 11
        assert run["best_epoch"] > 0
        hinges = [run[key]["title_hinge"] for key in ("validation_at_start", "validation_at_best")]
        assert hinges[1] < hinges[0]
    stories, products = (np.stack([cover(start + line) for line in range(12)]) for start in (100, 900))
    distances = np.linalg.norm(products[:, None] - stories[None], axis=2)
    expected = (distances.argmin(axis=1) == np.arange(12)).mean()
    held_out = result["retrieval"]["first pairs held out"]
    assert held_out["raw covers"]["hit_at_1"] == {"mean": expected, "deviation": 0.0}
    both = result["retrieval"]["both halves"]["title + cover"]
    hits = [run["figures"]["title + cover"]["hit_at_5"] for run in result["runs"]]
    assert both["hit_at_5"]["mean"] == pytest.approx(np.mean(hits))
    row = f"| after DUAL: title + cover | {both['hit_at_1']['mean']:.3f}"
    assert row in (tmp_path / "out" / TABLE).read_text()


def test_the_same_seeds_give_the_same_figures(tmp_path: Path) -> None:
    vocabulary = make(tmp_path / "in", num_lines=5)
    first, second = (
        run_srd_sample(tmp_path / "in", out=tmp_path / name, seeds=[3], vocabulary=vocabulary) for name in ("a", "b")
    )
    assert first == second


def test_anything_but_one_small_file_is_refused(tmp_path: Path) -> None:
    vocabulary = make(tmp_path / "in", num_lines=3)
    with pytest.raises(DataError, match="one small pre-training file"):
        run_srd_sample(tmp_path / "in", out=tmp_path / "out", seeds=[1], vocabulary=vocabulary)
    write(tmp_path / "in" / "SRD-1_train_data.txt", [])
    with pytest.raises(DataError, match="one small pre-training file"):
        run_srd_sample(tmp_path / "in", out=tmp_path / "out", seeds=[1], vocabulary=vocabulary)
    assert not (tmp_path / "out").exists()
