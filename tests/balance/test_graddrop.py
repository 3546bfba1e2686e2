from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.graddrop import GradDrop
from metarun.types import LOTS


def step(slopes: Tensor, lots: Tensor) -> Tensor:
    weights, _ = GradDrop()(torch.ones(len(slopes)), slopes, {LOTS: lots})
    return (weights * slopes).sum(0)


@pytest.mark.parametrize("tasks", [2, 5, 32])
def test_the_step_is_torchjds_over_the_number_of_tasks(
    tasks: int, jd: ModuleType, drawn_slopes: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    slopes = drawn_slopes(tasks)
    lots = torch.rand(slopes.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: lots)
    assert torch.allclose(step(slopes, lots), jd.GradDrop()(slopes) / tasks)


def test_every_entry_keeps_one_sign_alone(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(5)
    weights, _ = GradDrop()(torch.ones(5), slopes, {LOTS: torch.full((11,), 0.5)})
    kept = torch.where(weights > 0, slopes, 0)
    assert ((kept >= 0).all(0) | (kept <= 0).all(0)).all() and (slopes.sign().sum(0).abs() < 5).any()


def test_on_average_over_the_lots_it_is_the_mean(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes, grid = drawn_slopes(3), (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    average = torch.vmap(lambda u: step(slopes, u.expand(7)))(grid).mean(0)
    assert torch.allclose(average, slopes.mean(0), atol=2e-3)


@pytest.mark.parametrize("lot", [0.0, 1 - 2**-24])
def test_slopes_of_one_sign_are_all_kept_whatever_the_lot(lot: float) -> None:
    slopes = torch.tensor([[1.0, -1.0], [2.0, -3.0]])
    assert step(slopes, torch.full((2,), lot)).equal(torch.tensor([1.5, -2.0]))
