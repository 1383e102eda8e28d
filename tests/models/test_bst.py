"""BST and its Transformer block recomputed head by head, click by click."""

import math
from dataclasses import replace

import pytest
import torch

from drawn_features import NUM_BLOCKS, NUM_STORY_CLICKS, WIDTH, drawn_features
from storyrec.models.bst import BehaviorSequenceTransformer
from storyrec.models.layers import TransformerBlock

HEADS = 8


def make_ranker(*, appended: bool) -> BehaviorSequenceTransformer:
    torch.manual_seed(0)
    module = BehaviorSequenceTransformer(
        width=WIDTH,
        num_heads=HEADS,
        hidden_width=11,
        num_time_blocks=NUM_BLOCKS,
        head_widths=(12, 7),
        dropout=0.5,
        appended=appended,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


def normalized(values_D: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred_D = values_D - values_D.mean()
    return centred_D / math.sqrt((centred_D**2).mean() + norm.eps) * norm.weight + norm.bias


def naive_block(block: TransformerBlock, sequence: list[torch.Tensor]) -> list[torch.Tensor]:
    """[28]: LayerNorm(S + attention), then LayerNorm(. + LeakyReLU(. W1 + b1) W2 + b2)."""
    width = WIDTH // HEADS
    query_DD, key_DD, value_DD = block.projections.weight.chunk(3)
    query_bias_D, key_bias_D, value_bias_D = block.projections.bias.chunk(3)
    outputs = []
    for item_D in sequence:
        heads = []
        for head in range(HEADS):
            rows = slice(head * width, (head + 1) * width)
            query_E = query_DD[rows] @ item_D + query_bias_D[rows]
            powers = [
                torch.exp(query_E @ (key_DD[rows] @ other_D + key_bias_D[rows]) / math.sqrt(width))
                for other_D in sequence
            ]
            values = [value_DD[rows] @ other_D + value_bias_D[rows] for other_D in sequence]
            heads.append(sum(p * v for p, v in zip(powers, values, strict=True)) / sum(powers))
        item_D = normalized(item_D + block.output(torch.cat(heads)), block.attention_norm)
        first, _, second = block.positions
        hidden = first.weight @ item_D + first.bias
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        outputs.append(normalized(item_D + second.weight @ hidden + second.bias, block.positions_norm))
    return outputs


@pytest.mark.parametrize("appended", [True, False])
def test_ranker_is_one_block_and_the_mean_of_its_clicks(appended: bool) -> None:
    ranker, features = make_ranker(appended=appended), drawn_features()
    logits_B = ranker(features)
    for row, num_clicks in enumerate(NUM_STORY_CLICKS):
        target_D = features.target_BD[row]
        clicks = [
            features.story_BSD[row, place] + ranker.time_blocks.weight[features.story_blocks_BS[row, place]]
            for place in range(num_clicks)
        ]
        outputs = naive_block(ranker.block, [*clicks, target_D] if appended else clicks)
        if appended:
            target_D = outputs.pop()
        user_D = sum(outputs, torch.zeros(WIDTH)) / max(1, num_clicks)
        expected = ranker.head(torch.cat([user_D, target_D]))[0]
        torch.testing.assert_close(logits_B[row], expected, atol=1e-4, rtol=1e-4)


def test_target_reaches_the_user_only_where_it_is_appended() -> None:
    features = drawn_features()
    other = replace(features, target_BD=features.target_BD.flip(0))
    for appended in (True, False):
        ranker = make_ranker(appended=appended)
        (user_BD, _), (other_BD, _) = ranker.user_and_target(features), ranker.user_and_target(other)
        changed_B = (user_BD - other_BD).abs().amax(dim=1) > 1e-4
        assert changed_B.tolist() == [appended and number > 0 for number in NUM_STORY_CLICKS]


@pytest.mark.parametrize("appended", [True, False])
def test_user_without_clicks_is_zero(appended: bool) -> None:
    user_BD, _ = make_ranker(appended=appended).user_and_target(drawn_features())
    assert [not user_D.any() for user_D in user_BD] == [number == 0 for number in NUM_STORY_CLICKS]
