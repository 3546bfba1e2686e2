from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.dwa import DWA, LAST
from metarun.types import Params


def course(losses: Tensor, balance: DWA) -> tuple[Tensor, Params]:
    """The weights of each row, and what is kept in the end."""
    kept, found = {name: p.double() for name, p in balance.init(losses.shape[1], 6).items()}, []
    for row in losses:
        weights, kept = balance(row, None, kept)
        found.append(weights)
    return torch.stack(found), kept


def drawn(steps: int, tasks: int) -> Tensor:
    return torch.rand(steps, tasks, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_weights_are_torchjds_over_the_number_of_tasks(tasks: int, scalarization: ModuleType) -> None:
    """Whose epochs are our periods."""
    losses, theirs, expected = drawn(12, tasks), scalarization.DWA(0.7), []
    for step, row in enumerate(losses):
        leaf = row.clone().requires_grad_()
        expected += torch.autograd.grad(theirs(leaf), leaf)
        if step % 3 == 2:
            theirs.step()
    found, _ = course(losses, DWA(0.7, 3))
    assert torch.allclose(found, torch.stack(expected) / tasks) and found[:6].equal(
        torch.full_like(found[:6], 1 / tasks)
    )


def test_the_loss_that_falls_slower_gains_weight() -> None:
    found, _ = course(torch.tensor([[1.0, 1.0], [0.9, 0.5], [0.9, 0.5]], dtype=torch.float64), DWA(2.0, 1))
    assert torch.allclose(found[-1], torch.tensor([0.9, 0.5], dtype=torch.float64).div(2).softmax(0))


def test_a_head_that_was_absent_for_a_period_keeps_its_last_mean() -> None:
    losses = torch.tensor([[1.0, 2.0], [0.5, math.nan], [0.5, 1.0]], dtype=torch.float64)
    assert course(losses[:2], DWA(2.0, 1))[1][LAST].tolist() == [0.5, 2.0]
    assert course(losses, DWA(2.0, 1))[1][LAST].tolist() == [0.5, 1.0]
