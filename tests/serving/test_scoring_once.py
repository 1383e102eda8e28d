"""Sequences that are read once a request give the scores of sequences that are read once a candidate."""

from pathlib import Path

import numpy as np
import pytest
import torch

from storyrec.bundle import RANKER_OF_ONE_USER, Bundle
from storyrec.explain import load_ranker
from storyrec.manifest import Manifest
from storyrec.models.aden import Aden
from storyrec.models.click_model import Features
from storyrec.schema import Domain

LENGTH, WIDTH, NUM_TARGETS = 5, 8, 7


def drawn_features(story_blocks: list[int], product_blocks: list[int]) -> Features:
    """Many targets with one user's two sequences, repeated for each."""
    generator = torch.Generator().manual_seed(3)

    def repeated(values: torch.Tensor) -> torch.Tensor:
        return values.expand(NUM_TARGETS, *values.shape).contiguous()

    def items() -> torch.Tensor:
        return torch.randn(LENGTH, WIDTH, generator=generator)

    nothing_B = torch.zeros(NUM_TARGETS, dtype=torch.int64)
    return Features(
        target_BD=torch.randn(NUM_TARGETS, WIDTH, generator=generator),
        story_BSD=repeated(items()),
        story_blocks_BS=repeated(torch.tensor(story_blocks)),
        product_BPD=repeated(items()),
        product_blocks_BP=repeated(torch.tensor(product_blocks)),
        user_rows_B=nothing_B,
        target_categories_B=nothing_B,
        story_categories_BS=torch.zeros(NUM_TARGETS, LENGTH, dtype=torch.int64),
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("story_blocks", "product_blocks"),
    [([3, 2, 1, 0, 0], [4, 4, 1, 1, 1]), ([0] * 5, [1, 0, 0, 0, 0]), ([0] * 5, [0] * 5)],
)
def test_aden_of_one_user_is_aden(story_blocks: list[int], product_blocks: list[int], gated: bool) -> None:
    torch.manual_seed(1)
    aden = Aden(width=WIDTH, num_heads=2, num_time_blocks=4, head_widths=(6,), dropout=0.1, gated=gated).eval()
    with torch.no_grad():
        for weight in aden.parameters():
            weight.normal_(std=0.5)
        features = drawn_features(story_blocks, product_blocks)
        logits_B, weights = aden.of_one_user(
            features.target_BD,
            story_LD=features.story_BSD[0],
            story_blocks_L=features.story_blocks_BS[0],
            product_LD=features.product_BPD[0],
            product_blocks_L=features.product_blocks_BP[0],
        )
        expected = aden.attention_weights(features)
        torch.testing.assert_close(logits_B, aden(features), rtol=1e-5, atol=1e-5)
        for domain in Domain:
            torch.testing.assert_close(weights[domain], expected[domain], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def bundle(packed: Path) -> Bundle:
    return Bundle.load(packed)


def drawn_request(bundle: Bundle, *, num: int, clicks: tuple[int, int] = (4, 9)) -> dict[str, np.ndarray]:
    """Candidates and sequences of some rows of the bundle."""
    generator = np.random.default_rng(5)
    length = bundle.config.features.sequence_length
    request = {"target_BD": bundle.stories.vectors_ND[generator.integers(1, len(bundle.stories.ids_N), num)]}
    for name, table, number in zip(("story", "product"), (bundle.stories, bundle.products), clicks, strict=True):
        rows_L, blocks_L = np.zeros(length, np.int64), np.zeros(length, np.int64)
        rows_L[:number] = generator.integers(1, len(table.ids_N), number)
        blocks_L[:number] = generator.integers(1, 9, number)
        request |= {f"{name}_LD": table.vectors_ND[rows_L], f"{name}_blocks_L": blocks_L}
    return request


@pytest.mark.parametrize("clicks", [(4, 9), (0, 3), (0, 0)])
@pytest.mark.parametrize("num", [1, 37])
def test_the_graph_of_one_user_scores_as_the_graph_of_rows(bundle: Bundle, num: int, clicks: tuple[int, int]) -> None:
    request = drawn_request(bundle, num=num, clicks=clicks)
    repeated = {name: np.repeat(values[None], num, axis=0) for name, values in request.items() if name != "target_BD"}
    expected = bundle.run_ranker(
        target_BD=request["target_BD"],
        story_BSD=repeated["story_LD"],
        story_blocks_BS=repeated["story_blocks_L"],
        product_BPD=repeated["product_LD"],
        product_blocks_BP=repeated["product_blocks_L"],
    )
    found = bundle.rank_candidates(**request)
    assert np.ptp(found) > 0.01 or num == 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_graphs_weights_are_torchs(bundle: Bundle) -> None:
    request = drawn_request(bundle, num=3)
    ranker = load_ranker(bundle)
    with torch.no_grad():
        _, expected = ranker.of_one_user(**{name: torch.from_numpy(values) for name, values in request.items()})
    for found, domain in zip(bundle.attention_weights(**request), Domain, strict=True):
        np.testing.assert_allclose(found, expected[domain].numpy(), atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=2), 1.0, atol=1e-5)


def test_a_bundle_of_before_serves_without_the_graph(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(packed, tmp_path / "before")
    (tmp_path / "before" / RANKER_OF_ONE_USER).unlink()
    before = Bundle.open_unverified(tmp_path / "before", Manifest("0" * 16, bundle.day, {}))
    request = drawn_request(bundle, num=11)
    np.testing.assert_allclose(before.rank_candidates(**request), bundle.rank_candidates(**request), atol=1e-6)
    before.probe()
