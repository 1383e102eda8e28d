"""THACIL recomputed dimension by dimension, block by block."""

import math
from dataclasses import replace

import pytest
import torch

from drawn_features import NUM_BLOCKS, NUM_CATEGORIES, NUM_STORY_CLICKS, WIDTH, drawn_features
from storyrec.models.click_model import Features
from storyrec.models.thacil import AdditiveAttention, ForwardSelfAttention, Thacil

HEADS, BLOCK_LENGTH = 4, 3


@pytest.fixture
def ranker() -> Thacil:
    torch.manual_seed(0)
    module = Thacil(
        width=WIDTH,
        num_heads=HEADS,
        block_length=BLOCK_LENGTH,
        num_categories=NUM_CATEGORIES,
        num_time_blocks=NUM_BLOCKS,
        head_widths=(12, 7),
        dropout=0.5,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.time_blocks.weight[0] = 0.0
        module.categories.weight[0] = 0.0
    return module.eval()


def weighed(scores: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """The sum of the values by a softmax of the scores, in every dimension for itself."""
    result = torch.zeros_like(values[0])
    for i in range(len(result)):
        powers = [math.exp(score[i]) for score in scores]
        for power, value in zip(powers, values, strict=True):
            result[i] += power / sum(powers) * value[i]
    return result


def naive_attention(
    attention: AdditiveAttention, values: list[torch.Tensor], queries: list[torch.Tensor]
) -> torch.Tensor:
    scores = [
        attention.score.weight @ torch.tanh(attention.key(value) + attention.query.weight @ query)
        for value, query in zip(values, queries, strict=True)
    ]
    return weighed(scores, values)


def naive_self_attention(attention: ForwardSelfAttention, blocks: list[torch.Tensor]) -> list[torch.Tensor]:
    width, outputs = 2 * WIDTH // HEADS, []
    for number, block in enumerate(blocks):
        mixed = torch.zeros(2 * WIDTH)
        for head in range(HEADS if number else 0):
            rows = slice(head * width, (head + 1) * width)
            scores = [
                attention.scores_HEE[head].T @ torch.tanh(attention.query(block)[rows] + attention.key(earlier)[rows])
                for earlier in blocks[:number]
            ]
            mixed[rows] = weighed(scores, [attention.value(earlier)[rows] for earlier in blocks[:number]])
        centred = block + mixed - (block + mixed).mean()
        norm = attention.norm
        outputs.append(centred / math.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias)
    return outputs


@torch.no_grad()
def test_ranker_is_its_four_attentions(ranker: Thacil) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    for row, num_clicks in enumerate(NUM_STORY_CLICKS):
        target = torch.cat([features.target_BD[row], ranker.categories.weight[features.target_categories_B[row]]])
        blocks = []
        for start in range(0, num_clicks, BLOCK_LENGTH):
            places = range(start, min(start + BLOCK_LENGTH, num_clicks))
            items = [
                features.story_BSD[row, place] + ranker.time_blocks.weight[features.story_blocks_BS[row, place]]
                for place in places
            ]
            categories = [ranker.categories.weight[features.story_categories_BS[row, place]] for place in places]
            pooled = [
                naive_attention(ranker.item_attention, items, categories),
                naive_attention(ranker.category_attention, categories, items),
            ]
            blocks.append(torch.cat(pooled))
        user = torch.zeros(2 * WIDTH)
        if blocks:
            seen = naive_self_attention(ranker.self_attention, blocks)
            user = naive_attention(ranker.target_attention, seen, [target] * len(seen))
        expected = ranker.head(torch.cat([user, target]))[0]
        torch.testing.assert_close(logits_B[row], expected, atol=1e-4, rtol=1e-4)


def test_blocks_see_those_before_them_only(ranker: Thacil) -> None:
    blocks_BND, mask_BN = torch.randn(1, 4, 2 * WIDTH), torch.ones(1, 4, dtype=torch.bool)
    before_BND = ranker.self_attention(blocks_BND, mask_BN)
    blocks_BND[:, 2] += 1.0
    changed_N = (ranker.self_attention(blocks_BND, mask_BN) - before_BND).abs().amax(dim=(0, 2)) > 1e-5
    assert changed_N.tolist() == [False, False, True, True]


def test_categories_count_in_sequence_and_target(ranker: Thacil) -> None:
    features = drawn_features()
    logits_B = ranker(features)

    def changed(other: Features) -> list[bool]:
        return ((ranker(other) - logits_B).abs() > 1e-5).tolist()

    shifted_BS = torch.where(features.story_blocks_BS > 0, 1 + features.story_categories_BS % NUM_CATEGORIES, 0)
    assert changed(replace(features, story_categories_BS=shifted_BS)) == [number > 0 for number in NUM_STORY_CLICKS]
    shifted_B = 1 + features.target_categories_B % NUM_CATEGORIES
    assert changed(replace(features, target_categories_B=shifted_B)) == [True] * len(logits_B)


def test_blocks_without_clicks_are_zero(ranker: Thacil) -> None:
    blocks_BND, mask_BN = ranker.blocks(drawn_features())
    assert mask_BN.sum(dim=1).tolist() == [math.ceil(number / BLOCK_LENGTH) for number in NUM_STORY_CLICKS]
    assert torch.equal(blocks_BND.any(dim=-1), mask_BN)
