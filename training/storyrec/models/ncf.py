"""NCF: matrix factorisation beside a deep network, joined by a last hidden layer.

Paper: Sec. IV-A, [23]. Legend: B batch, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import UserTable, click_head


class NeuralCollaborativeFiltering(Ranker):
    """The product of user and target element by element, and layers over their concatenation.

    Deviates from [23]: both parts read one table of users, as [23] has it before it joins them.

    Args:
        num_users: users with training instances; any other has the unknown user's vector.
        width: d of the item features; also the width of the layer that joins both parts.
        head_widths: hidden layers of the deep part.
        dropout: share of hidden units dropped in training.
    """

    reads = frozenset()

    def __init__(self, *, num_users: int, width: int, head_widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.users = UserTable(num_users, width=width)
        # the common head without its logit
        self.deep = nn.Sequential(*list(click_head(2 * width, head_widths=head_widths, dropout=dropout))[:-1])
        self.head = click_head(width + head_widths[-1], head_widths=(width,), dropout=dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        user_BD, target_BD = self.users(features.user_rows_B), features.target_BD
        deep_BD = self.deep(torch.cat([user_BD, target_BD], dim=-1))
        logits_B1: Tensor = self.head(torch.cat([user_BD * target_BD, deep_BD], dim=-1))
        return logits_B1.squeeze(-1)
