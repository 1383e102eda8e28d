"""Matching on a planted marketplace: figures against a naive computation, and that DUAL raises them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import planted_config, write_validated
from storyrec.config import Config, update_config
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError, ModelError
from storyrec.experiments.matching import evaluate_matching, raw_covers, title_and_cover
from storyrec.export import load_trained_extractors
from storyrec.models.extractors import Extractors, RawItems
from storyrec.pretrain import DUAL_WEIGHTS, build_extractors, pretrain_dual, raw_items
from storyrec.storage import FolderStorage

NUM_CLUSTERS = 8
DEPTH = 100  # instead of 500, which is more stories than there are here
SETTINGS = {"model": {"width": 16}, "dual": {"max_epochs": 8, "batch_size": 64}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Settings, and the folder of a dataset where each product is mounted by one story of its cluster."""
    root = tmp_path_factory.mktemp("planted")
    day = write_validated(root, num_clusters=NUM_CLUSTERS, items_per_day=80, num_users=40)
    config = update_config(planted_config(root), SETTINGS)
    build_dataset(config, day=day, out=root / "dataset")
    return config, root / "dataset"


def fresh(config: Config, data: Dataset) -> Extractors:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_extractors(config, num_words=data.vocabulary.size).eval()


def items_of(config: Config, data: Dataset) -> dict[str, RawItems]:
    return dict(zip(("stories", "products"), raw_items(data, max_words=config.features.max_title_words), strict=True))


def naive(
    stories_ND: np.ndarray, products_ND: np.ndarray, *, queries: set[int], pairs: set[tuple[int, int]]
) -> dict[str, float]:
    """Every figure query by query, with plain sorting and counting."""
    hits, recalls, gains, aucs, with_zeros = [], [], [], [], []
    for product in queries:
        relevant = {story for story, mounted in pairs if mounted == product}
        distances = {row: math.dist(stories_ND[row], products_ND[product]) for row in range(1, len(stories_ND))}
        order = sorted(distances, key=distances.__getitem__)
        found = [rank for rank, story in enumerate(order[:5]) if story in relevant]
        hits.append(bool(found))
        recalls.append(len(found) / len(relevant))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(5, len(relevant))))
        gains.append(sum(1 / math.log2(rank + 2) for rank in found) / ideal)
        near, others = relevant & set(order[:DEPTH]), set(order[:DEPTH]) - relevant
        if near:
            aucs.append(np.mean([distances[one] < distances[other] for one in near for other in others]))
        with_zeros.append(aucs[-1] if near else 0.0)
    return {
        "hit_at_5": np.mean(hits),
        "recall_at_5": np.mean(recalls),
        "ndcg_at_5": np.mean(gains),
        "auc_top_500": np.mean(aucs),
        "auc_top_500_missing_as_zero": np.mean(with_zeros),
        "num_queries": len(queries),
        "num_queries_without_auc": len(queries) - len(aucs),
    }


def test_equals_a_naive_computation(planted: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyrec.experiments.retrieval.AUC_DEPTH", DEPTH)
    config, folder = planted
    data = Dataset.load(folder)
    # some products are mounted by several stories, and some by an earlier and by a new one
    in_sample_M2, held_out_M2 = np.array(data.pairs_M2), np.array(data.holdout_pairs_M2)
    in_sample_M2[::3, 1] = in_sample_M2[0, 1]
    in_sample_M2[1::3, 1] = np.arange(len(in_sample_M2[1::3])) // 4 + 1
    held_out_M2[::2, 1] = in_sample_M2[1 : 1 + len(held_out_M2[::2]), 1]
    data = replace(data, pairs_M2=in_sample_M2, holdout_pairs_M2=held_out_M2)
    extractors, items = fresh(config, data), items_of(config, data)
    metrics = evaluate_matching(title_and_cover(extractors), data=data, seed=1, **items)

    with torch.no_grad():
        stories_ND, products_ND = (
            extractors.extract(part, np.arange(len(part))).match_NM.numpy() for part in items.values()
        )
    pairs = {(int(story), int(product)) for story, product in [*in_sample_M2, *held_out_M2]}
    earlier, new = set(in_sample_M2[:, 1].tolist()), set(held_out_M2[:, 1].tolist())
    assert earlier & new
    assert new - earlier
    for part, queries in (("in_sample", earlier), ("held_out", new), ("unseen", new - earlier)):
        expected = naive(stories_ND, products_ND, queries=queries, pairs=pairs)
        assert {name: metrics[f"{part}_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["unseen_num_queries_without_auc"] > 0
    assert metrics["num_gallery_stories"] == 400
    assert metrics["in_sample_num_products"] == len(earlier)
    assert metrics["held_out_num_products"] == len(new)


@pytest.mark.parametrize("shuffled", [False, True], ids=["mounts", "shuffled mounts"])
def test_dual_raises_matching_of_held_out_pairs_only_where_mounts_mean_something(
    planted: tuple[Config, Path], tmp_path: Path, shuffled: bool
) -> None:
    config, folder = planted
    data = Dataset.load(folder)
    if shuffled:
        generator = np.random.default_rng(3)
        parts = [np.array(part) for part in (data.pairs_M2, data.holdout_pairs_M2)]
        for part_M2 in parts:
            part_M2[:, 1] = generator.permutation(part_M2[:, 1])
        data = replace(data, pairs_M2=parts[0], holdout_pairs_M2=parts[1], digest="shuffled")
        data.save(tmp_path / "dataset")
        folder = tmp_path / "dataset"
    pretrain_dual(
        config,
        dataset=folder,
        champion=None,
        checkpoints=FolderStorage(tmp_path / "checkpoints"),
        out=tmp_path / "dual",
    )
    trained = load_trained_extractors(fresh(config, data), tmp_path / "dual" / DUAL_WEIGHTS)
    items = items_of(config, data)
    before, after = (
        evaluate_matching(title_and_cover(extractors), data=data, seed=1, **items)
        for extractors in (fresh(config, data), trained)
    )
    if shuffled:
        assert after["unseen_auc_top_500"] == pytest.approx(0.5, abs=0.1)
    else:
        # the story lies somewhere among the eighth of the stories that are of the product's cluster
        assert after["unseen_auc_top_500"] > 0.88
        assert after["unseen_auc_top_500"] > before["unseen_auc_top_500"] + 0.1


def test_samples_queries_by_the_seed_alone(planted: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = planted
    data = Dataset.load(folder)
    items = items_of(config, data)
    everything = evaluate_matching(raw_covers, data=data, seed=1, **items)
    monkeypatch.setattr("storyrec.experiments.matching.MAX_QUERIES", 50)
    first, same, other = (evaluate_matching(raw_covers, data=data, seed=seed, **items) for seed in (1, 1, 2))
    assert everything["in_sample_num_queries"] == everything["in_sample_num_products"] == 320
    assert (first["in_sample_num_queries"], first["in_sample_num_products"]) == (50, 320)
    assert first["in_sample_auc_top_500"] == same["in_sample_auc_top_500"] != other["in_sample_auc_top_500"]
    # 50 of 320 queries: their mean lies near that of all
    assert first["in_sample_auc_top_500"] == pytest.approx(everything["in_sample_auc_top_500"], abs=0.15)


def test_refuses_data_without_mounted_products(planted: tuple[Config, Path]) -> None:
    config, folder = planted
    nothing_M2 = np.empty((0, 2), np.int64)
    data = replace(Dataset.load(folder), pairs_M2=nothing_M2, holdout_pairs_M2=nothing_M2)
    with pytest.raises(DataError, match="mounts a product"):
        evaluate_matching(raw_covers, data=data, seed=1, **items_of(config, data))


def test_without_held_out_pairs_their_figures_are_unknown_and_the_rest_stands(planted: tuple[Config, Path]) -> None:
    config, folder = planted
    whole = Dataset.load(folder)
    data = replace(whole, holdout_pairs_M2=np.empty((0, 2), np.int64))
    items = items_of(config, data)
    metrics, expected = (evaluate_matching(raw_covers, data=part, seed=1, **items) for part in (data, whole))
    assert metrics["held_out_num_queries"] == metrics["unseen_num_queries"] == 0
    assert math.isnan(metrics["held_out_hit_at_5"])
    assert metrics["in_sample_auc_top_500"] == expected["in_sample_auc_top_500"]
    assert metrics["approximate_found_at_5"] > 0


def test_refuses_a_cover_that_is_not_finite(planted: tuple[Config, Path]) -> None:
    config, folder = planted
    data = Dataset.load(folder)
    items = items_of(config, data)
    covers_NV = np.array(items["stories"].visual_raw_NV)
    covers_NV[7, 3] = np.nan
    items["stories"] = replace(items["stories"], visual_raw_NV=covers_NV)
    embeds: list[Callable[[RawItems], np.ndarray]] = [raw_covers, title_and_cover(fresh(config, data))]
    for embed in embeds:
        with pytest.raises(ModelError, match="not finite"):
            evaluate_matching(embed, data=data, seed=1, **items)
