"""MF: a vector per user against the story's features.

Paper: Sec. IV-A, [22]. Legend: B batch, D width.
"""

from torch import Tensor

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import UserTable


class MatrixFactorization(Ranker):
    """The inner product of a user's vector and the target's features.

    Args:
        num_users: users with training instances; any other has the unknown user's vector.
        width: d of the item features.
    """

    reads = frozenset()

    def __init__(self, *, num_users: int, width: int) -> None:
        super().__init__()
        self.users = UserTable(num_users, width=width)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        user_BD: Tensor = self.users(features.user_rows_B)
        return (user_BD * features.target_BD).sum(dim=-1)
