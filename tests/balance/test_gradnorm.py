from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.balance.gradnorm import FIRST, LOGITS, GradNorm
from metarun.types import Params


def at(slopes: Tensor, losses: Tensor, logits: Tensor, first: Tensor, alpha: float) -> tuple[Tensor, Params]:
    return GradNorm(alpha)(losses, slopes @ slopes.T, {LOGITS: logits, FIRST: first})


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_slope_of_the_logits_is_that_of_the_papers_objective(
    tasks: int, alpha: float, drawn_slopes: Callable[..., Tensor]
) -> None:
    """Written out, with autograd."""
    slopes, generator = drawn_slopes(tasks), torch.Generator().manual_seed(1)
    losses, first = torch.rand(2, tasks, generator=generator, dtype=torch.float64) + 0.1
    logits = torch.randn(tasks, generator=generator, dtype=torch.float64).requires_grad_()
    sizes = tasks * logits.softmax(0) * slopes.norm(dim=1)
    rates = losses / first / (losses / first).mean()
    objective = (sizes - (sizes.mean() * rates**alpha).detach()).abs().sum()
    (expected,) = torch.autograd.grad(objective, logits)
    weights, entries = at(slopes, losses, logits.detach(), first, alpha)
    assert torch.allclose(entries[LOGITS], expected) and torch.allclose(weights, logits.detach().softmax(0))


def test_without_alpha_the_weighed_slopes_come_to_be_equally_long(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(3) * torch.tensor([[1.0], [3.0], [0.5]], dtype=torch.float64)
    kept = {name: p.double() for name, p in GradNorm(0.0).init(3, 7).items()}
    for step in range(3000):
        weights, entries = GradNorm(0.0)(torch.ones(3), slopes @ slopes.T, kept)
        kept = {LOGITS: kept[LOGITS] - 0.1 / (1 + step) ** 0.7 * entries[LOGITS], FIRST: entries[FIRST]}
    sizes = weights * slopes.norm(dim=1)
    assert torch.allclose(sizes, sizes.mean().expand(3), rtol=0.01)


def test_of_equally_long_slopes_the_one_whose_loss_fell_less_gains_weight() -> None:
    _, entries = at(torch.eye(2), torch.tensor([0.9, 0.3]), torch.zeros(2), torch.ones(2), 1.5)
    assert entries[LOGITS][0] < 0 < entries[LOGITS][1]


def test_the_first_loss_of_a_head_is_the_first_that_is_seen() -> None:
    balance = GradNorm(1.0)
    _, entries = balance(torch.tensor([2.0, math.nan]), torch.eye(2), balance.init(2, 6))
    assert entries[FIRST][0] == 2 and entries[FIRST][1].isnan() and not entries[LOGITS].any()
    _, later = balance(torch.tensor([1.0, 4.0]), torch.eye(2), {**balance.init(2, 6), FIRST: entries[FIRST]})
    assert later[FIRST].tolist() == [2.0, 4.0]
