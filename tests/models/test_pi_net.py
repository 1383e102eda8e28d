"""pi-Net recomputed step by step: the encoders, the filter with several members, the transfer."""

import pytest
import torch

from drawn_features import NUM_BLOCKS, WIDTH, drawn_features
from storyrec.models.pi_net import AccountFilter, ParallelInformationSharing, num_clicks_before


@pytest.fixture
def ranker() -> ParallelInformationSharing:
    torch.manual_seed(0)
    module = ParallelInformationSharing(
        width=WIDTH, num_time_blocks=NUM_BLOCKS, head_widths=(9, 5), dropout=0.3, num_members=3
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
        module.time_blocks.weight[0] = 0.0
    return module.eval()


def naive_gru(gru: torch.nn.GRU, inputs_LD: list[torch.Tensor]) -> list[torch.Tensor]:
    """The state after each step."""
    state_D, states = torch.zeros(WIDTH), []
    for input_D in inputs_LD:
        own = (gru.weight_ih_l0 @ input_D + gru.bias_ih_l0).view(3, WIDTH)
        past = (gru.weight_hh_l0 @ state_D + gru.bias_hh_l0).view(3, WIDTH)
        reset, keep = torch.sigmoid(own[0] + past[0]), torch.sigmoid(own[1] + past[1])
        candidate = torch.tanh(own[2] + reset * past[2])
        state_D = (1 - keep) * candidate + keep * state_D
        states.append(state_D)
    return states


def naive_filter(unit: AccountFilter, own: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
    """Member by member, `f = sigmoid(W_f [h; g; s] + V_f e + b_f)`, `c = tanh(W_s [h; s] + V_s e + b_s)`."""
    gate, candidate = slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)
    state_D, states = torch.zeros(WIDTH), []
    for own_D, other_D in zip(own, other, strict=True):
        members = []
        for member_D in unit.members:
            f_D = torch.sigmoid(
                unit.own.weight[gate] @ own_D
                + unit.other.weight @ other_D
                + unit.past.weight[gate] @ state_D
                + unit.member.weight[gate] @ member_D
                + unit.own.bias[gate]
            )
            c_D = torch.tanh(
                unit.own.weight[candidate] @ own_D
                + unit.past.weight[candidate] @ state_D
                + unit.member.weight[candidate] @ member_D
                + unit.own.bias[candidate]
            )
            members.append(f_D * state_D + (1 - f_D) * c_D)
        state_D = sum(members) / len(members)
        states.append(state_D)
    return states


def test_scores_are_recomputed_step_by_step(ranker: ParallelInformationSharing) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    for row in range(len(logits_B)):
        clicks = {}
        for domain, items_LD, blocks_L in (
            ("story", features.story_BSD[row], features.story_blocks_BS[row]),
            ("product", features.product_BPD[row], features.product_blocks_BP[row]),
        ):
            clicks[domain] = [
                (block, item_D + ranker.time_blocks.weight[block])
                for block, item_D in zip(blocks_L.tolist(), items_LD, strict=True)
                if block > 0
            ]
        story_states = naive_gru(ranker.story_encoder, [item_D for _, item_D in clicks["story"]])
        product_states = naive_gru(ranker.product_encoder, [item_D for _, item_D in clicks["product"]])
        before = []
        for product_block, _ in clicks["product"]:
            state_D = torch.zeros(WIDTH)
            for (story_block, _), story_state_D in zip(clicks["story"], story_states, strict=True):
                if story_block >= product_block:  # not newer: blocks count back
                    state_D = story_state_D
            before.append(state_D)
        transferred = naive_gru(ranker.transfer, naive_filter(ranker.account_filter, product_states, before))
        story_D, product_D = (states[-1] if states else torch.zeros(WIDTH) for states in (story_states, transferred))
        hidden = torch.cat([story_D, product_D, features.target_BD[row]])
        first, second, last = (layer for layer in ranker.head if isinstance(layer, torch.nn.Linear))
        expected = last(torch.relu(second(torch.relu(first(hidden)))))
        torch.testing.assert_close(logits_B[[row]], expected, atol=1e-5, rtol=1e-4)


def test_a_product_click_sees_the_story_clicks_before_it() -> None:
    #                 oldest ... newest, padding
    story_blocks = torch.tensor([[9, 7, 7, 3, 0], [0, 0, 0, 0, 0]])
    product_blocks = torch.tensor([[10, 8, 7, 5, 3, 1], [4, 2, 0, 0, 0, 0]])
    assert num_clicks_before(story_blocks, product_blocks).tolist() == [[0, 1, 3, 3, 4, 4], [0] * 6]


def test_without_clicks_a_user_is_zero(ranker: ParallelInformationSharing) -> None:
    features = drawn_features()
    for module in (ranker.train(), ranker.eval()):
        story_BD, product_BD = module.users(features)
        no_story_B = ~(features.story_blocks_BS > 0).any(dim=1)
        no_product_B = ~(features.product_blocks_BP > 0).any(dim=1)
        assert (story_BD == 0).all(dim=1).tolist() == no_story_B.tolist()
        assert (product_BD == 0).all(dim=1).tolist() == no_product_B.tolist()


def test_members_of_an_account_count_in_the_mean(ranker: ParallelInformationSharing) -> None:
    """Equal members are one member."""
    unit = ranker.account_filter
    alone = AccountFilter(width=WIDTH, num_members=1)
    alone.load_state_dict(unit.state_dict() | {"members": unit.members[:1].detach()})
    own_BPD, other_BPD = torch.randn(2, 4, WIDTH), torch.randn(2, 4, WIDTH)
    assert not torch.allclose(unit(own_BPD, other_BPD), alone(own_BPD, other_BPD), atol=1e-3)
    with torch.no_grad():
        unit.members.copy_(unit.members[:1].expand(3, -1))
    torch.testing.assert_close(unit(own_BPD, other_BPD), alone(own_BPD, other_BPD), atol=1e-6, rtol=1e-5)
