"""DIEN: how a user's interest evolves towards the target.

Paper: Sec. IV-A, [27]. Legend: B batch, S story sequence, D width, N next clicks of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyrec.losses import click_loss
from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import click_head, cut_sequence, masked_softmax, time_block_table
from storyrec.schema import Domain


class AttentionalGru(nn.Module):
    """A GRU whose update gate is opened by attention (AUGRU).

    With z the share of the old state that a GRU keeps, it keeps `(1 - a) z`: all of an item with full
    attention is taken in. Deviates from the formula printed in [27] as its authors' code does.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width)

    def forward(self, inputs_BSD: Tensor, attention_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The last state, [B, D]; zero where the whole sequence is padding."""
        width = inputs_BSD.shape[-1]
        gates_BSG = self.input(inputs_BSD)
        # at padding the whole state is kept
        opened_BS = torch.where(mask_BS, 1.0 - attention_BS, 0.0)
        kept_BS = (~mask_BS).to(inputs_BSD.dtype)
        state_BD = inputs_BSD.new_zeros(len(inputs_BSD), width)
        # along the steps once, because slicing every step has its price in the gradient
        for gates_BG, opened_B1, kept_B1 in zip(
            gates_BSG.unbind(dim=1),
            opened_BS.unsqueeze(-1).unbind(dim=1),
            kept_BS.unsqueeze(-1).unbind(dim=1),
            strict=True,
        ):
            own_BD, own_candidate_BD = gates_BG.split((2 * width, width), dim=-1)
            past_BD, past_candidate_BD = self.state(state_BD).split((2 * width, width), dim=-1)
            reset_BD, keep_BD = torch.sigmoid(own_BD + past_BD).chunk(2, dim=-1)
            keep_BD = torch.addcmul(kept_B1, opened_B1, keep_BD)
            # tanh(x) = 2 sigmoid(2 x) - 1, many times faster on a CPU
            candidate_BD = torch.addcmul(own_candidate_BD, reset_BD, past_candidate_BD)
            candidate_BD = 2.0 * torch.sigmoid(2.0 * candidate_BD) - 1.0
            state_BD = torch.lerp(candidate_BD, state_BD, keep_BD)
        return state_BD


@dataclass(frozen=True)
class _Sequence:
    """What forward and loss both read: items without time blocks, the mask, and the GRU's states."""

    items_BSD: Tensor
    mask_BS: Tensor
    interests_BSD: Tensor


class DeepInterestEvolution(Ranker):
    """A GRU over the sequence, attention of the target over its states, and an AUGRU over both.

    Args:
        width: d of the item features and of the states.
        num_time_blocks: blocks told apart.
        head_widths: hidden layers behind [user; target; target * sum of the sequence].
        dropout: share of the head's hidden units dropped in training.
        auxiliary: let each state also tell the next click from another one of the batch, as [27] has it.
    """

    reads = frozenset({Domain.STORY})

    def __init__(
        self,
        *,
        width: int,
        num_time_blocks: int,
        head_widths: Sequence[int],
        dropout: float,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.time_blocks = time_block_table(num_time_blocks, width=width)
        self.extraction = nn.GRU(width, width, batch_first=True)
        self.attention = nn.Linear(width, width, bias=False)
        self.evolution = AttentionalGru(width=width)
        self.head = click_head(3 * width, head_widths=head_widths, dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        return self._logits(features.target_BD, self._sequence(features))

    def loss(self, features: Features, clicked_B: Tensor) -> Tensor:
        """Eq. 11, and the auxiliary loss where it counts."""
        sequence = self._sequence(features)
        loss = click_loss(self._logits(features.target_BD, sequence), clicked_B)
        if self.auxiliary:
            loss = loss + next_click_loss(sequence.interests_BSD, sequence.items_BSD, sequence.mask_BS)
        return loss

    def _sequence(self, features: Features) -> _Sequence:
        items_BSD, blocks_BS = cut_sequence(features.story_BSD, features.story_blocks_BS)
        interests_BSD, _ = self.extraction(items_BSD + self.time_blocks(blocks_BS))
        return _Sequence(items_BSD, blocks_BS > 0, interests_BSD)

    def _logits(self, target_BD: Tensor, sequence: _Sequence) -> Tensor:
        scores_BS = torch.matmul(sequence.interests_BSD, self.attention(target_BD).unsqueeze(-1)).squeeze(-1)
        weights_BS = masked_softmax(scores_BS, sequence.mask_BS, dim=1)
        user_BD = self.evolution(sequence.interests_BSD, weights_BS, sequence.mask_BS)
        parts = [user_BD, target_BD, target_BD * sequence.items_BSD.sum(dim=1)]
        logits_B1: Tensor = self.head(torch.cat(parts, dim=-1))
        return logits_B1.squeeze(-1)


def next_click_loss(interests_BSD: Tensor, items_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """Let each state tell the click that follows it from another next click of the batch, drawn at random.

    Where the other is in the state's own sequence too, both are left out.

    Args:
        interests_BSD: the GRU's states.
        items_BSD: item features; a state is scored against one by their inner product.
        mask_BS: True at real positions.

    Returns:
        Cross-entropy of both, mean over the next clicks, scalar; 0 where there is none.
    """
    rows_N, places_N = mask_BS[:, 1:].nonzero(as_tuple=True)
    next_ND = items_BSD[rows_N, places_N + 1]
    other_ND = next_ND[torch.randperm(len(rows_N), device=rows_N.device)]
    # within a batch each distinct item is extracted once: the same item has the very same features
    own_N = (items_BSD[rows_N] == other_ND.unsqueeze(1)).all(dim=-1).any(dim=1)
    if own_N.all():
        return interests_BSD.new_zeros(())
    state_ND = interests_BSD[rows_N, places_N]
    right_N, wrong_N = (state_ND * next_ND).sum(dim=-1), (state_ND * other_ND).sum(dim=-1)
    return (F.softplus(-right_N) + F.softplus(wrong_N))[~own_N].mean()
