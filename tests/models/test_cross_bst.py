"""Cross-BST is BST on one sequence of both domains, in the order of time."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from drawn_features import NUM_BLOCKS, NUM_PRODUCT_CLICKS, NUM_STORY_CLICKS, WIDTH, drawn_features, take
from storyrec.models.bst import BehaviorSequenceTransformer
from storyrec.models.cross_bst import CrossDomainTransformer, with_merged_sequence

SIZES: dict[str, Any] = {
    "width": WIDTH,
    "num_heads": 8,
    "hidden_width": 20,
    "num_time_blocks": NUM_BLOCKS,
    "head_widths": (9, 5),
    "dropout": 0.3,
}


@pytest.fixture
def ranker() -> CrossDomainTransformer:
    torch.manual_seed(0)
    module = CrossDomainTransformer(**SIZES)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


def naive_merge(row: int) -> list[tuple[int, torch.Tensor]]:
    """Block and item of each click of an impression, the oldest first, stories before products."""
    features = drawn_features()
    clicks = [
        *zip(features.story_blocks_BS[row].tolist(), features.story_BSD[row], strict=True),
        *zip(features.product_blocks_BP[row].tolist(), features.product_BPD[row], strict=True),
    ]
    return sorted((click for click in clicks if click[0] > 0), key=lambda click: -click[0])


def test_sequences_are_merged_by_time() -> None:
    features = drawn_features()
    merged = with_merged_sequence(features)
    assert merged.story_BSD.shape[1] == features.story_BSD.shape[1] + features.product_BPD.shape[1]
    for row, (num_stories, num_products) in enumerate(zip(NUM_STORY_CLICKS, NUM_PRODUCT_CLICKS, strict=True)):
        expected, length = naive_merge(row), num_stories + num_products
        assert len(expected) == length
        assert merged.story_blocks_BS[row, :length].tolist() == [block for block, _ in expected]
        assert not merged.story_blocks_BS[row, length:].any()
        for place, (_, item_D) in enumerate(expected):
            assert torch.equal(merged.story_BSD[row, place], item_D)


def test_scores_are_those_of_bst_on_the_merged_clicks(ranker: CrossDomainTransformer) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    single = BehaviorSequenceTransformer(**SIZES).eval()
    single.load_state_dict(ranker.state_dict())
    for row in range(len(logits_B)):
        clicks = naive_merge(row)
        alone = take(features, [row])
        if clicks:
            alone = replace(
                alone,
                story_BSD=torch.stack([item_D for _, item_D in clicks]).unsqueeze(0),
                story_blocks_BS=torch.tensor([[block for block, _ in clicks]]),
            )
        torch.testing.assert_close(logits_B[[row]], single(alone), atol=1e-5, rtol=1e-5)


def test_a_click_counts_alike_in_either_domain(ranker: CrossDomainTransformer) -> None:
    features = drawn_features()
    swapped = replace(
        features,
        story_BSD=features.product_BPD,
        story_blocks_BS=features.product_blocks_BP,
        product_BPD=features.story_BSD,
        product_blocks_BP=features.story_blocks_BS,
    )
    torch.testing.assert_close(ranker(swapped), ranker(features), atol=1e-5, rtol=1e-5)
