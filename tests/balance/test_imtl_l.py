from __future__ import annotations

from types import ModuleType

import pytest
import torch

from metarun.balance.imtl_l import IMTLL, SCALES
from metarun.balance.uncertainty import LOGS, Uncertainty


def test_losses_that_stay_come_to_be_equally_large() -> None:
    losses = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    kept = {SCALES: torch.zeros(3, dtype=torch.float64)}
    for _ in range(2000):
        weights, slope = IMTLL()(losses, None, kept)
        kept = {SCALES: kept[SCALES] - 0.5 * slope[SCALES]}
    assert torch.allclose(weights * losses, torch.full_like(losses, 1 / 3))


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_weights_and_slope_are_torchjds_over_the_number_of_tasks(tasks: int, scalarization: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(tasks, generator=generator, dtype=torch.float64).requires_grad_()
    scales = torch.randn(tasks, generator=generator, dtype=torch.float64)
    theirs = scalarization.IMTLL(tasks).double()
    theirs.log_scale.data.copy_(scales)
    by_loss, by_scale = torch.autograd.grad(theirs(losses), [losses, theirs.log_scale])
    weights, slope = IMTLL()(losses.detach(), None, {SCALES: scales})
    assert torch.allclose(weights, by_loss / tasks) and torch.allclose(slope[SCALES], by_scale / tasks)


def test_it_is_uncertainty_with_the_other_sign() -> None:
    losses, scales = torch.tensor([0.3, 2.0]), torch.tensor([0.5, -0.1])
    weights, slope = IMTLL()(losses, None, {SCALES: scales})
    other, opposite = Uncertainty()(losses, None, {LOGS: -scales})
    assert torch.allclose(weights, other) and torch.allclose(slope[SCALES], -opposite[LOGS])
