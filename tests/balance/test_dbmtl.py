from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.balance.dbmtl import DBMTL, MEANS, SEEN
from metarun.types import Params


def asked(balance: DBMTL, losses: Tensor, slopes: Tensor, kept: Params) -> tuple[Tensor, Params]:
    weights, entries = balance(losses, slopes, kept)
    return (weights * slopes).sum(0), entries


def double(kept: Params) -> Params:
    return {name: p.double() for name, p in kept.items()}


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_step_is_the_papers_from_averages_written_out(tasks: int, drawn_slopes: Callable[..., Tensor]) -> None:
    balance, kept, means = DBMTL(0.9, 0.5), double(DBMTL(0.9, 0.5).init(tasks, 2 * tasks + 1)), None
    for t in range(1, 5):
        slopes, losses = drawn_slopes(tasks, seed=t), drawn_slopes(tasks, seed=t)[:, 0].exp()
        step, kept = asked(balance, losses, slopes, kept)
        of_logs, beta = slopes / losses[:, None], 0.9 / t**0.5
        means = of_logs if means is None else beta * means + (1 - beta) * of_logs
        norms = means.norm(dim=1, keepdim=True)
        expected = norms.max() * (means / norms).mean(0) * losses.log().mean().exp()
        assert torch.allclose(step, expected) and torch.allclose(kept[MEANS], means)


def test_all_heads_pull_equally_hard_however_long_their_slopes_are(drawn_slopes: Callable[..., Tensor]) -> None:
    lengths = torch.tensor([1.0, 50.0, 0.02], dtype=torch.float64)
    step, _ = asked(DBMTL(0.0, 0.0), torch.ones(3), lengths.diag(), double(DBMTL(0.0, 0.0).init(3, 3)))
    assert torch.allclose(step, torch.full((3,), 50 / 3, dtype=torch.float64))


def test_a_loss_of_another_unit_does_not_turn_the_step(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes, losses = drawn_slopes(3), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    unit = torch.tensor([1.0, 1000.0, 1.0], dtype=torch.float64)
    kept = double(DBMTL(0.9, 0.5).init(3, 7))
    one, _ = asked(DBMTL(0.9, 0.5), losses, slopes, kept)
    other, _ = asked(DBMTL(0.9, 0.5), unit * losses, unit[:, None] * slopes, kept)
    assert torch.allclose(one / one.norm(), other / other.norm())


def test_an_absent_head_keeps_its_average_and_its_count() -> None:
    balance, slopes = DBMTL(0.9, 0.5), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    _, kept = asked(balance, torch.ones(2), slopes, balance.init(2, 2))
    _, later = asked(balance, torch.tensor([1.0, math.nan]), slopes * torch.tensor([[2.0], [0.0]]), kept)
    assert later[MEANS][1].equal(kept[MEANS][1]) and later[SEEN].tolist() == [2.0, 1.0]


def test_an_entry_where_all_slopes_are_zero_does_not_move() -> None:
    balance, kept = DBMTL(0.9, 0.0), DBMTL(0.9, 0.0).init(2, 2)
    _, kept = asked(balance, torch.ones(2), torch.ones(2, 2), kept)
    step, _ = asked(balance, torch.ones(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), kept)
    assert step[0] > 0 and step[1] == 0
