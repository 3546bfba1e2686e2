from __future__ import annotations

from types import ModuleType

import pytest
import torch

from metarun.balance.stch import STCH


@pytest.mark.parametrize("mu", [0.1, 1.0])
@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_weights_are_torchjds_times_the_number_of_tasks(tasks: int, mu: float, scalarization: ModuleType) -> None:
    """Whose losses are divided by it, and μ with them."""
    losses = torch.rand(tasks, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(scalarization.STCH(mu / tasks)(losses), losses)
    assert torch.allclose(STCH(mu)(losses.detach(), None, {})[0], slope * tasks)


def test_it_tends_to_the_largest_loss_as_mu_goes_to_zero_and_to_the_mean_as_it_grows() -> None:
    losses = torch.tensor([0.3, 0.5, 0.1])
    assert STCH(1e-3)(losses, None, {})[0].equal(torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(STCH(1e6)(losses, None, {})[0], torch.full((3,), 1 / 3))
