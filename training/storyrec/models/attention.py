"""The target attention of ADEN: how much each past click of one domain says about the target story.

Paper: Sec. III-C, Eq. 9-10. Legend: B batch, L sequence, D width, H heads, E head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from storyrec.models.dropout import Dropout
from storyrec.models.layers import masked_softmax


class TargetAttention(nn.Module):
    """Multi-head attention of the target story over one sequence.

    Paper: Eq. 9-10; without output projection, residual or normalisation. Key and value projections
    are folded to the query's side, which is the same arithmetic without projecting every item of
    the sequence: `q . (K f + k) = (q K) . f + q . k` and `sum a (V f + v) = V (sum a f) + v sum a`.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, target_BD: Tensor, sequence_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The user representation [B, D]; zero where the whole sequence is padding."""
        query_BHD, offset_BH1 = self._folded_query(target_BD)
        if self.training and target_BD.is_cpu:
            factors_BHL = self.dropout(target_BD.new_ones(*query_BHD.shape[:2], mask_BL.shape[1]))
            inputs = (query_BHD, offset_BH1, sequence_BLD, mask_BL, factors_BHL)
            pooled_BHD, total_BH1 = _PooledByAttention.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            weights_BHL = self.dropout(_attention_weights(query_BHD, offset_BH1, sequence_BLD, mask_BL))
            pooled_BHD, total_BH1 = torch.bmm(weights_BHL, sequence_BLD), weights_BHL.sum(dim=-1, keepdim=True)
        value_HDE = self.value.weight.view(self.num_heads, self.head_width, -1).transpose(1, 2)
        user_BHE = torch.bmm(pooled_BHD.transpose(0, 1), value_HDE).transpose(0, 1)
        user_BHE = user_BHE + total_BH1 * self.value.bias.view(self.num_heads, self.head_width)
        return user_BHE.flatten(1)

    def of_one_user(self, target_BD: Tensor, sequence_LD: Tensor, mask_L: Tensor) -> tuple[Tensor, Tensor]:
        """The user as each of many targets sees one sequence, [B, D], and the weights, [B, H, L].

        The same arithmetic as `forward`, folded to the sequence's side: all that depends on the user alone is
        multiplied once, and two products of the targets are left, one before the softmax and one behind it.
        """
        key_HLE = self._heads(self.key(sequence_LD)) * self.head_width**-0.5
        value_HLE = self._heads(self.value(sequence_LD))
        query_HED = self.query.weight.view(self.num_heads, self.head_width, -1)
        offset_HL = torch.bmm(key_HLE, self.query.bias.view(self.num_heads, self.head_width, 1)).squeeze(-1)
        offset_HL = offset_HL.masked_fill(~mask_L, torch.finfo(offset_HL.dtype).min)
        folded_ND = torch.bmm(key_HLE, query_HED).flatten(0, 1)  # N = H L: every head's clicks, one under the other
        scores_BN = torch.addmm(offset_HL.flatten(), target_BD, folded_ND.transpose(0, 1))
        weights_BHL = torch.softmax(scores_BN.view(-1, self.num_heads, len(mask_L)), dim=-1)
        # a head's values beside zeros for the other heads, [H, L, H, E]; all zero where no click is real
        own_head_HH = torch.eye(self.num_heads, dtype=value_HLE.dtype, device=value_HLE.device) * mask_L.any()
        value_ND = (value_HLE.unsqueeze(2) * own_head_HH[:, None, :, None]).flatten(2).flatten(0, 1)
        return weights_BHL.flatten(1) @ value_ND, weights_BHL * mask_L

    def weights(self, target_BD: Tensor, sequence_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """How much each head attends to each item, [B, H, L]: they sum to 1 over real positions, 0 at padding.

        Paper: Eq. 10.
        """
        return _attention_weights(*self._folded_query(target_BD), sequence_BLD, mask_BL)

    def _heads(self, rows_ND: Tensor) -> Tensor:
        """Rows cut into heads, [H, N, E]."""
        return rows_ND.view(-1, self.num_heads, self.head_width).transpose(0, 1)

    def _folded_query(self, target_BD: Tensor) -> tuple[Tensor, Tensor]:
        """What a head's score is made from: score = query . item + offset, [B, H, D] and [B, H, 1]."""
        query_HBE = self.query(target_BD).view(-1, self.num_heads, self.head_width).transpose(0, 1)
        query_HBE = query_HBE * self.head_width**-0.5
        key_HED = self.key.weight.view(self.num_heads, self.head_width, -1)
        key_HE1 = self.key.bias.view(self.num_heads, self.head_width, 1)
        query_BHD = torch.bmm(query_HBE, key_HED).transpose(0, 1).contiguous()
        return query_BHD, torch.bmm(query_HBE, key_HE1).transpose(0, 1)


def _attention_weights(query_BHD: Tensor, offset_BH1: Tensor, sequence_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    scores_BHL = torch.baddbmm(offset_BH1, query_BHD, sequence_BLD.transpose(1, 2))
    return masked_softmax(scores_BHL, mask_BL.unsqueeze(1), dim=-1)


class _PooledByAttention(torch.autograd.Function):
    """`w = factors * weights` pooled: `w @ sequence`, [B, H, D], and the sum of w, [B, H, 1].

    As autograd would have it, but the gradient of the sequence, by far the largest tensor, is written
    once, by one product, where autograd writes and adds two: a sixth of the whole training on a CPU. A
    GPU's compiler does as much by itself.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BHD: Tensor, offset_BH1: Tensor, sequence_BLD: Tensor, mask_BL: Tensor, factors_BHL: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights_BHL = _attention_weights(query_BHD, offset_BH1, sequence_BLD, mask_BL)
        ctx.save_for_backward(query_BHD, sequence_BLD, factors_BHL, weights_BHL)
        kept_BHL = weights_BHL * factors_BHL
        return torch.bmm(kept_BHL, sequence_BLD), kept_BHL.sum(dim=-1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_grad_BHD: Tensor, total_grad_BH1: Tensor) -> tuple[Tensor | None, ...]:
        query_BHD, sequence_BLD, factors_BHL, weights_BHL = ctx.saved_tensors
        grad_BHL = (torch.bmm(pooled_grad_BHD, sequence_BLD.transpose(1, 2)) + total_grad_BH1) * factors_BHL
        # through the softmax; zero at padding, where the weights are
        scores_grad_BHL = weights_BHL * (grad_BHL - (weights_BHL * grad_BHL).sum(dim=-1, keepdim=True))
        sequence_grad_BLD = torch.bmm(
            torch.cat([weights_BHL * factors_BHL, scores_grad_BHL], dim=1).transpose(1, 2),
            torch.cat([pooled_grad_BHD, query_BHD], dim=1),
        )
        query_grad_BHD = torch.bmm(scores_grad_BHL, sequence_BLD)
        return query_grad_BHD, scores_grad_BHL.sum(dim=-1, keepdim=True), sequence_grad_BLD, None, None
