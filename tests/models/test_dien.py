"""DIEN recomputed step by step; its auxiliary loss click by click."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from drawn_features import NUM_BLOCKS, NUM_STORY_CLICKS, WIDTH, drawn_features
from storyrec.models.dien import AttentionalGru, DeepInterestEvolution, next_click_loss

CLICKED_B = torch.tensor([1.0, 0, 0, 1, 0, 1])


def make_ranker(*, auxiliary: bool = False) -> DeepInterestEvolution:
    torch.manual_seed(0)
    module = DeepInterestEvolution(
        width=WIDTH, num_time_blocks=NUM_BLOCKS, head_widths=(12, 7), dropout=0.5, auxiliary=auxiliary
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


def naive_gru(
    weights: tuple[torch.Tensor, ...], inputs: list[torch.Tensor], attention: list[float] | None
) -> list[torch.Tensor]:
    """All states of a GRU; with attention a, (1 - a) z of the old state is kept instead of z."""
    input_weight, input_bias, state_weight, state_bias = weights
    state_D, states = torch.zeros(WIDTH), []
    for step, input_D in enumerate(inputs):
        own = (input_weight @ input_D + input_bias).view(3, WIDTH).tolist()
        past = (state_weight @ state_D + state_bias).view(3, WIDTH).tolist()
        new_D = torch.empty(WIDTH)
        for i in range(WIDTH):
            reset = 1 / (1 + math.exp(-(own[0][i] + past[0][i])))
            keep = 1 / (1 + math.exp(-(own[1][i] + past[1][i])))
            if attention is not None:
                keep *= 1 - attention[step]
            new_D[i] = keep * state_D[i] + (1 - keep) * math.tanh(own[2][i] + reset * past[2][i])
        state_D = new_D
        states.append(state_D)
    return states


def test_ranker_is_a_gru_attention_and_an_attentional_gru() -> None:
    ranker, features = make_ranker(), drawn_features()
    with torch.no_grad():
        logits_B = ranker(features)
    gru, augru = ranker.extraction, ranker.evolution
    gru_weights = tuple(w.detach() for w in (gru.weight_ih_l0, gru.bias_ih_l0, gru.weight_hh_l0, gru.bias_hh_l0))
    augru_weights = tuple(
        w.detach() for w in (augru.input.weight, augru.input.bias, augru.state.weight, augru.state.bias)
    )
    for row, num_clicks in enumerate(NUM_STORY_CLICKS):
        target_D, items_SD = features.target_BD[row], features.story_BSD[row, :num_clicks]
        times_SD = ranker.time_blocks.weight[features.story_blocks_BS[row, :num_clicks]].detach()
        interests = naive_gru(gru_weights, list(items_SD + times_SD), None)
        powers = [math.exp((interest_D @ ranker.attention.weight @ target_D).item()) for interest_D in interests]
        attention = [power / sum(powers) for power in powers]
        user_D = naive_gru(augru_weights, interests, attention)[-1] if num_clicks else torch.zeros(WIDTH)
        expected = ranker.head(torch.cat([user_D, target_D, target_D * items_SD.sum(dim=0)]))[0]
        torch.testing.assert_close(logits_B[row], expected, atol=1e-4, rtol=1e-4)


def test_full_attention_takes_an_item_in_and_padding_keeps_the_state() -> None:
    torch.manual_seed(0)
    gru = AttentionalGru(width=WIDTH)
    inputs_BSD, mask_BS = torch.randn(2, 4, WIDTH), torch.tensor([[True] * 4, [True, True, False, False]])
    last = torch.zeros(2, 4)
    last[0, 3] = last[1, 1] = 1.0
    users_BD = gru(inputs_BSD, last, mask_BS)
    torch.testing.assert_close(users_BD[1], gru(inputs_BSD[1:, :2], last[1:, :2], mask_BS[1:, :2])[0])
    # the old state only shows through the reset gate, never as itself
    gru.state.weight.data.zero_()
    gates = gru.input(inputs_BSD[0, 3]) + gru.state.bias * torch.tensor([1.0] * 2 * WIDTH + [0.0] * WIDTH)
    reset_D = torch.sigmoid(gates[:WIDTH])
    expected_D = torch.tanh(gates[2 * WIDTH :] + reset_D * gru.state.bias[2 * WIDTH :])
    torch.testing.assert_close(gru(inputs_BSD, last, mask_BS)[0], expected_D)


def test_user_without_clicks_is_zero() -> None:
    gru = AttentionalGru(width=WIDTH)
    nothing_BS = torch.zeros(3, 4, dtype=torch.bool)
    assert torch.equal(gru(torch.randn(3, 4, WIDTH), torch.zeros(3, 4), nothing_BS), torch.zeros(3, WIDTH))


def test_auxiliary_loss_is_added_to_equation_11() -> None:
    features = drawn_features()
    plain, original = make_ranker(), make_ranker(auxiliary=True)
    original.load_state_dict(plain.state_dict())
    torch.testing.assert_close(original(features), plain(features))
    torch.testing.assert_close(
        plain.loss(features, CLICKED_B), F.binary_cross_entropy_with_logits(plain(features), CLICKED_B)
    )
    interests_BSD, _ = original.extraction(features.story_BSD + original.time_blocks(features.story_blocks_BS))
    torch.manual_seed(5)
    auxiliary = next_click_loss(interests_BSD, features.story_BSD, features.story_blocks_BS > 0)
    torch.manual_seed(5)
    added = original.loss(features, CLICKED_B) - plain.loss(features, CLICKED_B)
    torch.testing.assert_close(added, auxiliary, atol=1e-4, rtol=1e-4)


def test_next_click_loss_click_by_click() -> None:
    """Two users with two next clicks in all: each is the other's wrong answer, or is left out as its own."""
    torch.manual_seed(0)
    states_BSD, items_BSD = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    mask_BS = torch.tensor([[True, True, False]] * 2)

    def term(state_D: torch.Tensor, item_D: torch.Tensor, *, right: bool) -> float:
        probability = 1 / (1 + math.exp(-(state_D @ item_D)))
        return -math.log(probability if right else 1 - probability)

    expected = (
        term(states_BSD[0, 0], items_BSD[0, 1], right=True)
        + term(states_BSD[0, 0], items_BSD[1, 1], right=False)
        + term(states_BSD[1, 0], items_BSD[1, 1], right=True)
        + term(states_BSD[1, 0], items_BSD[0, 1], right=False)
    ) / 2
    values = set()
    for seed in range(10):
        torch.manual_seed(seed)
        values.add(next_click_loss(states_BSD, items_BSD, mask_BS).item())
    assert sorted(values) == pytest.approx([0.0, expected], abs=1e-4)


def test_next_click_loss_teaches_states_the_next_click() -> None:
    torch.manual_seed(0)
    items_BSD, mask_BS = torch.randn(8, 5, WIDTH), torch.ones(8, 5, dtype=torch.bool)
    right_BSD = torch.cat([items_BSD[:, 1:], items_BSD[:, :1]], dim=1)
    right, wrong = (next_click_loss(sign * 0.25 * right_BSD, items_BSD, mask_BS).item() for sign in (1, -1))
    assert right < 1.0 < 2 * math.log(2) < wrong  # in the middle: states that know nothing


def test_without_a_next_click_there_is_no_auxiliary_loss() -> None:
    features = drawn_features()
    one_click = replace(
        features, story_blocks_BS=features.story_blocks_BS * (torch.arange(features.story_blocks_BS.shape[1]) < 1)
    )
    ranker = make_ranker(auxiliary=True)
    expected = F.binary_cross_entropy_with_logits(ranker(one_click), CLICKED_B)
    torch.testing.assert_close(ranker.loss(one_click, CLICKED_B), expected)
