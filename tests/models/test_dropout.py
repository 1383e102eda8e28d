"""The cheap dropout drops what it says, scales the rest, and is the identity outside training."""

import torch

from storyrec.models.dropout import Dropout


def test_share_and_scale() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.1)(torch.full((1001, 300), 2.0))
    kept = dropped != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.002
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2.0 / 0.9), rtol=1e-4, atol=0)
    # neighbours are drawn independently: four share one random integer
    for distance in (1, 2, 3, 300):
        both = (kept.flatten()[distance:] & kept.flatten()[:-distance]).float().mean().item()
        assert abs(both - 0.81) < 0.004


def test_gradient_flows_through_kept_elements_only() -> None:
    values = torch.ones(500, requires_grad=True)
    dropped = Dropout(0.3)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad != 0, dropped != 0)
    torch.testing.assert_close(values.grad, dropped.detach())


def test_same_seed_same_mask_and_identity_in_evaluation() -> None:
    module, values = Dropout(0.5), torch.randn(7, 9).T  # not contiguous
    torch.manual_seed(3)
    first = module(values)
    torch.manual_seed(3)
    assert torch.equal(module(values), first)
    assert not torch.equal(module(values), first)
    assert module.eval()(values) is values
    assert Dropout(0.0)(values) is values
