"""DIN recomputed click by click, with and without the softmax."""

import math
from dataclasses import replace

import pytest
import torch

from drawn_features import NUM_BLOCKS, NUM_STORY_CLICKS, WIDTH, drawn_features
from storyrec.models.din import DeepInterestNetwork


def make_ranker(*, normalized: bool) -> DeepInterestNetwork:
    torch.manual_seed(0)
    module = DeepInterestNetwork(
        width=WIDTH,
        num_time_blocks=NUM_BLOCKS,
        attention_widths=(9, 5),
        head_widths=(12, 7),
        dropout=0.5,
        normalized=normalized,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


def naive_score(ranker: DeepInterestNetwork, query_D: torch.Tensor, key_D: torch.Tensor) -> float:
    first, (second, last) = ranker.activation.first, ranker.activation.rest
    hidden = torch.cat([query_D, key_D, query_D - key_D, query_D * key_D])
    for layer in (first, second):
        hidden = 1.0 / (1.0 + torch.exp(-(layer.weight @ hidden + layer.bias)))
    return (last.weight @ hidden + last.bias).item()


@pytest.mark.parametrize("normalized", [True, False])
def test_user_is_the_sum_of_clicks_weighed_by_their_scores(normalized: bool) -> None:
    ranker, features = make_ranker(normalized=normalized), drawn_features()
    users_BD, logits_B = ranker.user(features), ranker(features)
    for row, num_clicks in enumerate(NUM_STORY_CLICKS):
        target_D = features.target_BD[row]
        clicks = [
            features.story_BSD[row, place] + ranker.time_blocks.weight[features.story_blocks_BS[row, place]]
            for place in range(num_clicks)
        ]
        weights = [naive_score(ranker, target_D, click_D) for click_D in clicks]
        if normalized:
            powers = [math.exp(score / math.sqrt(WIDTH)) for score in weights]
            weights = [power / sum(powers) for power in powers]
        user_D = torch.zeros(WIDTH)
        for weight, click_D in zip(weights, clicks, strict=True):
            user_D += weight * click_D
        torch.testing.assert_close(users_BD[row], user_D, atol=1e-5, rtol=1e-4)
        expected = ranker.head(torch.cat([user_D, target_D]))[0]
        torch.testing.assert_close(logits_B[row], expected, atol=1e-4, rtol=1e-4)


def test_only_without_the_softmax_do_weights_tell_how_much_there_is_to_say() -> None:
    """Twice the same clicks are twice the interest for [26], and the same one for the softmax."""
    features = drawn_features()
    twice = replace(
        features,
        story_BSD=torch.cat([features.story_BSD[:1]] * 2, dim=1),
        story_blocks_BS=torch.cat([features.story_blocks_BS[:1]] * 2, dim=1),
        target_BD=features.target_BD[:1],
    )
    for normalized, factor in ((True, 1.0), (False, 2.0)):
        ranker = make_ranker(normalized=normalized)
        torch.testing.assert_close(ranker.user(twice), factor * ranker.user(features)[:1], atol=1e-4, rtol=1e-4)


def test_user_without_clicks_is_zero() -> None:
    for normalized in (True, False):
        users_BD = make_ranker(normalized=normalized).user(drawn_features())
        assert [not user_D.any() for user_D in users_BD] == [number == 0 for number in NUM_STORY_CLICKS]
