"""pi-Net: what of the story clicks is carried over to the product clicks, step by step.

Paper: Sec. IV-A, [30]. Legend: B batch, S story sequence, P product sequence, D width, K latent members
of an account, G gate and candidate side by side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import click_head, cut_sequence, nth_vectors, time_block_table


class AccountFilter(nn.Module):
    """The shared-account filter unit: keeps what each member of an account would pass on.

    With own state h, the other domain's state g, member e and filtered state s:
    `f = sigmoid(W_f [h; g; s] + V_f e + b_f)`, `c = tanh(W_s [h; s] + V_s e + b_s)`, and the next s is the
    mean of `f s + (1 - f) c` over members. The code of [30] has `V_f e` in the candidate too; this is
    its formula.

    Args:
        width: of the states and members.
        num_members: K.
    """

    def __init__(self, *, width: int, num_members: int) -> None:
        super().__init__()
        self.members = nn.Parameter(torch.randn(num_members, width) * 0.05)
        self.own = nn.Linear(width, 2 * width)
        self.other = nn.Linear(width, width, bias=False)
        self.past = nn.Linear(width, 2 * width, bias=False)
        self.member = nn.Linear(width, 2 * width, bias=False)

    def forward(self, own_BPD: Tensor, other_BPD: Tensor) -> Tensor:
        """The filtered state after each step, [B, P, D].

        Args:
            own_BPD: states of the domain whose steps these are.
            other_BPD: the other domain's state just before each step.
        """
        own_gate_BPD, own_candidate_BPD = self.own(own_BPD).chunk(2, dim=-1)
        inputs_BPG = torch.cat([own_gate_BPD + self.other(other_BPD), own_candidate_BPD], dim=-1)
        inputs_BPKG = inputs_BPG.unsqueeze(2) + self.member(self.members)
        state_BD = own_BPD.new_zeros(len(own_BPD), own_BPD.shape[-1])
        states = []
        for inputs_BKG in inputs_BPKG.unbind(dim=1):
            gate_BKD, candidate_BKD = (inputs_BKG + self.past(state_BD).unsqueeze(1)).chunk(2, dim=-1)
            state_BKD = torch.lerp(torch.tanh(candidate_BKD), state_BD.unsqueeze(1), torch.sigmoid(gate_BKD))
            state_BD = state_BKD.mean(dim=1)
            states.append(state_BD)
        return torch.stack(states, dim=1)


class ParallelInformationSharing(Ranker):
    """A GRU per domain; the filter and a transfer GRU carry the story states along the product clicks.

    Deviates from [30]: the mirrored branch, from products to stories, serves the prediction of products
    alone; stories are predicted without it, so it is left out.

    Args:
        width: d of the item features and of the states.
        num_time_blocks: blocks told apart.
        head_widths: hidden layers behind [story user; product user; target].
        dropout: share of hidden units dropped in training.
        num_members: latent members of an account.
    """

    shares_sequences = True

    def __init__(
        self,
        *,
        width: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
        num_members: int = 1,
    ) -> None:
        super().__init__()
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.story_encoder = nn.GRU(width, width, batch_first=True)
        self.product_encoder = nn.GRU(width, width, batch_first=True)
        self.account_filter = AccountFilter(width=width, num_members=num_members)
        self.transfer = nn.GRU(width, width, batch_first=True)
        self.head = click_head(3 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        users_BD = features.per_sequence(lambda sequences: torch.cat(self.users(sequences), dim=-1))
        logits_B1: Tensor = self.head(torch.cat([users_BD, features.target_BD], dim=-1))
        return logits_B1.squeeze(-1)

    def users(self, features: Features) -> tuple[Tensor, Tensor]:
        """The user as the story clicks and as the product clicks show her, [B, D] each; zero without clicks."""
        story_BSD, story_blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        product_BPD, product_blocks_BP = cut_sequence(features.product_BPD, features.product_blocks_BP)
        # padding is on the right, so no state of a real step has seen it
        story_BSD, _ = self.story_encoder(story_BSD + self.time_blocks(story_blocks_BS))
        product_BPD, _ = self.product_encoder(product_BPD + self.time_blocks(product_blocks_BP))
        before_BP = num_clicks_before(story_blocks_BS, product_blocks_BP)
        filtered_BPD = self.account_filter(product_BPD, nth_vectors(story_BSD, before_BP))
        transferred_BPD, _ = self.transfer(filtered_BPD)
        return last_state(story_BSD, story_blocks_BS), last_state(transferred_BPD, product_blocks_BP)


def num_clicks_before(story_blocks_BS: Tensor, product_blocks_BP: Tensor) -> Tensor:
    """How many story clicks came before each product click, or in the same time block, [B, P]."""
    # blocks count back from the impression: the larger, the older; no block is 0 but padding
    before_BPS = story_blocks_BS.unsqueeze(1) >= product_blocks_BP.clamp(min=1).unsqueeze(2)
    return before_BPS.sum(dim=2)


def last_state(states_BLD: Tensor, blocks_BL: Tensor) -> Tensor:
    """The state at each sequence's last click, [B, D]; zero where there is none."""
    return nth_vectors(states_BLD, (blocks_BL > 0).sum(dim=1, keepdim=True)).squeeze(1)
