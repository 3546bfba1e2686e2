from __future__ import annotations

from types import ModuleType

import pytest
import torch

from metarun.balance.geometric import Geometric


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_weights_are_the_slope_of_torchjds_geometric_mean(tasks: int, scalarization: ModuleType) -> None:
    losses = torch.rand(tasks, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(scalarization.GeometricMean()(losses), losses)
    assert torch.allclose(Geometric()(losses.detach(), None, {})[0], slope, rtol=1e-9)


def test_every_loss_counts_as_much_whatever_its_scale() -> None:
    """w_h L_h is the same for all."""
    losses = torch.tensor([1e-3, 1.0, 1e3])
    parts = Geometric()(losses, None, {})[0] * losses
    assert torch.allclose(parts, parts.mean().expand(3))
