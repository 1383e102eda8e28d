"""CoNet: a tower per domain, and what each layer of one tells the next layer of the other.

Paper: Sec. IV-A, [8]. Legend: B batch, N product instances, P product sequence, D width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from storyrec.models.click_model import Features, Ranker
from storyrec.models.dropout import Dropout
from storyrec.models.layers import UserTable, nth_vectors
from storyrec.models.product_instances import draw_product_instances, product_click_loss
from storyrec.schema import Domain


class CollaborativeCrossNetwork(Ranker):
    """Two towers on [user; item] with one cross connection per layer, the same matrix in both directions.

    Inferred: the towers run side by side, so a story is scored beside a product. It is the one that the
    user clicked last, or zero where there is none, in training as in prediction; a product is scored
    beside the target of its instance.

    Args:
        num_users: users with training instances; any other has the unknown user's vector.
        width: d of the item features.
        tower_widths: hidden layers of each tower.
        dropout: share of hidden units dropped in training.
    """

    reads = frozenset({Domain.PRODUCT})

    def __init__(self, *, num_users: int, width: int, tower_widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.users = UserTable(num_users, width=width)
        layers = list(pairwise((2 * width, *tower_widths)))
        self.story_layers = nn.ModuleList(nn.Linear(*layer) for layer in layers)
        self.product_layers = nn.ModuleList(nn.Linear(*layer) for layer in layers)
        self.crossings = nn.ModuleList(nn.Linear(*layer, bias=False) for layer in layers)
        self.story_output = nn.Linear(tower_widths[-1], 1)
        self.product_output = nn.Linear(tower_widths[-1], 1)
        self.dropout = Dropout(dropout)

    def forward(self, features: Features) -> Tensor:
        """Logits of the click probabilities, [B]."""
        num_clicks_B = (features.product_blocks_BP > 0).sum(dim=1)
        last_BD = nth_vectors(features.product_BPD, num_clicks_B.unsqueeze(1)).squeeze(1)
        story_B, _ = self.towers(self.users(features.user_rows_B), features.target_BD, last_BD)
        return story_B

    def loss(self, features: Features, clicked_B: Tensor) -> Tensor:
        """The sum of both domains' cross-entropies, a scalar."""
        products = draw_product_instances(features)
        user_ND = self.users(features.user_rows_B[products.rows_N])
        target_ND = features.target_BD[products.rows_N]
        _, clicked_N = self.towers(user_ND, target_ND, products.clicked_ND)
        _, other_N = self.towers(user_ND, target_ND, products.other_ND)
        return super().loss(features, clicked_B) + product_click_loss(clicked_N, other_N)

    def towers(self, user_BD: Tensor, story_BD: Tensor, product_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the story and of the product beside it, [B] each."""
        story_BD, product_BD = torch.cat([user_BD, story_BD], dim=-1), torch.cat([user_BD, product_BD], dim=-1)
        for story_layer, product_layer, cross in zip(
            self.story_layers, self.product_layers, self.crossings, strict=True
        ):
            story_BD, product_BD = (
                self.dropout(torch.relu(story_layer(story_BD) + cross(product_BD))),
                self.dropout(torch.relu(product_layer(product_BD) + cross(story_BD))),
            )
        return self.story_output(story_BD).squeeze(-1), self.product_output(product_BD).squeeze(-1)
