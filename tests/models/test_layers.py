"""Look-ups whose gradients are fast on a CPU, against torch's own."""

import numpy as np
import torch
import torch.nn.functional as F

from storyrec.models.click_model import gather
from storyrec.models.layers import time_block_table


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
