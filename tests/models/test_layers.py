"""Parts that several rankers share: look-ups with fast gradients, the unknown user, what stands at a step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from storyrec.models.click_model import gather
from storyrec.models.layers import UserTable, nth_vectors, time_block_table


def test_time_blocks_equal_an_embedding_with_padding() -> None:
    table = time_block_table(5, width=4)
    with torch.no_grad():
        table.weight.normal_(generator=torch.Generator().manual_seed(0))
        table.weight[0] = 0.0
    plain_TD = table.weight.detach().clone().requires_grad_()
    blocks_BL = torch.tensor([[1, 3, 3], [6, 0, 0]])
    factors_BLD = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))

    vectors_BLD, expected_BLD = table(blocks_BL), F.embedding(blocks_BL, plain_TD, padding_idx=0)
    (vectors_BLD * factors_BLD).sum().backward()
    (expected_BLD * factors_BLD).sum().backward()

    assert torch.equal(vectors_BLD, expected_BLD)
    assert torch.equal(table.weight.grad, plain_TD.grad)
    assert not table.weight.grad[0].any()


def test_gather_equals_an_embedding() -> None:
    items_ND = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain_ND = items_ND.detach().clone().requires_grad_()
    places = np.array([[0, 6, 6], [3, 0, 1]])
    factors = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))

    gathered, expected = gather(items_ND, places), F.embedding(torch.from_numpy(places), plain_ND)
    (gathered * factors).sum().backward()
    (expected * factors).sum().backward()

    assert torch.equal(gathered, expected)
    assert torch.equal(items_ND.grad, plain_ND.grad)


@pytest.fixture
def table() -> UserTable:
    torch.manual_seed(0)
    return UserTable(4, width=3, unknown_share=0.2)


def test_every_user_has_a_row_and_the_unknown_one_row_0(table: UserTable) -> None:
    assert table.vectors.weight.shape == (5, 3)
    rows_B = torch.tensor([3, 0, 4, 1, 3])
    assert torch.equal(table.eval()(rows_B), table.vectors.weight[rows_B])


def test_in_training_a_share_of_the_impressions_is_the_unknown_users(table: UserTable) -> None:
    rows_B = torch.full((5_000,), 2)
    vectors_BD = table.train()(rows_B)
    unknown_B = (vectors_BD == table.vectors.weight[0]).all(dim=1)
    assert torch.equal(vectors_BD[~unknown_B], table.vectors.weight[2].expand((~unknown_B).sum(), 3))
    assert unknown_B.float().mean() == pytest.approx(0.2, abs=0.02)
    vectors_BD.sum().backward()
    gradient = table.vectors.weight.grad
    assert gradient[0].tolist() == [float(unknown_B.sum())] * 3  # the unknown user is learned
    assert not gradient[[1, 3, 4]].any()


def test_nth_vectors_are_counted_from_one_and_zero_is_nothing() -> None:
    values_BLD = torch.arange(12.0).view(2, 3, 2) + 1
    picked = nth_vectors(values_BLD, torch.tensor([[3, 0, 1, 1], [0, 2, 2, 3]]))
    assert picked.tolist() == [
        [[5, 6], [0, 0], [1, 2], [1, 2]],
        [[0, 0], [9, 10], [9, 10], [11, 12]],
    ]
