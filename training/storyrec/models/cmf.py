"""CMF: one vector per user, learned from what she clicks in both domains.

Paper: Sec. IV-A, [1]. Legend: B batch, N product instances, D width.
"""

from torch import Tensor

from storyrec.models.click_model import Features, Ranker
from storyrec.models.layers import UserTable
from storyrec.models.product_instances import draw_product_instances, product_click_loss
from storyrec.schema import Domain


class CollectiveMatrixFactorization(Ranker):
    """The inner product of a user's vector and an item's features, in both domains.

    Args:
        num_users: users with training instances; any other has the unknown user's vector.
        width: d of the item features.
    """

    reads = frozenset({Domain.PRODUCT})

    def __init__(self, *, num_users: int, width: int) -> None:
        super().__init__()
        self.users = UserTable(num_users, width=width)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        user_BD: Tensor = self.users(features.user_rows_B)
        return (user_BD * features.target_BD).sum(dim=-1)

    def loss(self, features: Features, clicked_B: Tensor) -> Tensor:
        """The sum of both domains' cross-entropies, a scalar."""
        products = draw_product_instances(features)
        user_ND: Tensor = self.users(features.user_rows_B[products.rows_N])
        return super().loss(features, clicked_B) + product_click_loss(
            (user_ND * products.clicked_ND).sum(dim=-1), (user_ND * products.other_ND).sum(dim=-1)
        )
