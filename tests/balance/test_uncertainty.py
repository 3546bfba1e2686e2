from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.uncertainty import LOGS, Uncertainty


def descended(losses: Tensor, steps: int = 2000, rate: float = 1.0) -> Tensor:
    """The weights after so many steps down the slope of s, for losses that stay."""
    kept = {LOGS: torch.zeros_like(losses)}
    for _ in range(steps):
        weights, slope = Uncertainty()(losses, None, kept)
        kept = {LOGS: kept[LOGS] - rate * slope[LOGS]}
    return weights


def test_the_first_step_is_that_of_equal_weights() -> None:
    weights, _ = Uncertainty()(torch.tensor([3.0, 0.1]), None, Uncertainty().init(2, 6))
    assert weights.equal(torch.tensor([0.5, 0.5]))


def test_for_losses_that_stay_the_weights_come_to_rest_at_one_over_them() -> None:
    losses = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    assert torch.allclose(descended(losses), 1 / (3 * losses))


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_weights_and_slope_are_those_of_torchjds_times_two_over_the_number_of_tasks(
    tasks: int, scalarization: ModuleType
) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(tasks, generator=generator, dtype=torch.float64).requires_grad_()
    logs = torch.randn(tasks, generator=generator, dtype=torch.float64)
    theirs = scalarization.UW(tasks).double()
    theirs.log_var.data.copy_(logs)
    by_loss, by_log = torch.autograd.grad(theirs(losses), [losses, theirs.log_var])
    weights, slope = Uncertainty()(losses.detach(), None, {LOGS: logs})
    assert torch.allclose(weights, by_loss * 2 / tasks) and torch.allclose(slope[LOGS], by_log * 2 / tasks)


def test_an_absent_heads_variance_stays() -> None:
    _, slope = Uncertainty()(torch.tensor([3.0, math.nan]), None, Uncertainty().init(2, 6))
    assert slope[LOGS].equal(torch.tensor([-2.0, 0.0]))
