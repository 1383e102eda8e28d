"""NCF recomputed one unit after the other."""

import pytest
import torch

from drawn_features import NUM_USERS, WIDTH, drawn_features
from storyrec.models.ncf import NeuralCollaborativeFiltering


@pytest.fixture
def ranker() -> NeuralCollaborativeFiltering:
    torch.manual_seed(0)
    module = NeuralCollaborativeFiltering(num_users=NUM_USERS, width=WIDTH, head_widths=(12, 7), dropout=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def linear_layers(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [layer for layer in module if isinstance(layer, torch.nn.Linear)]


def test_product_beside_a_deep_network(ranker: NeuralCollaborativeFiltering) -> None:
    features = drawn_features()
    logits_B = ranker(features)
    first, second = linear_layers(ranker.deep)
    joining, last = linear_layers(ranker.head)
    assert [layer.out_features for layer in (first, second, joining, last)] == [12, 7, WIDTH, 1]
    for row, target_D in enumerate(features.target_BD):
        user_D = ranker.users.vectors.weight[features.user_rows_B[row]]
        hidden = torch.cat([user_D, target_D])
        for layer in (first, second):
            hidden = torch.clamp(layer.weight @ hidden + layer.bias, min=0.0)
        joined = torch.cat([torch.stack([u * v for u, v in zip(user_D, target_D, strict=True)]), hidden])
        joined = torch.clamp(joining.weight @ joined + joining.bias, min=0.0)
        torch.testing.assert_close(logits_B[row], (last.weight @ joined + last.bias)[0], atol=1e-4, rtol=1e-4)


def test_score_is_the_users_own(ranker: NeuralCollaborativeFiltering) -> None:
    features = drawn_features()
    before_B = ranker(features)
    with torch.no_grad():
        ranker.users.vectors.weight[3] += 1.0
    changed_B = ranker(features) != before_B
    assert torch.equal(changed_B, features.user_rows_B == 3)
