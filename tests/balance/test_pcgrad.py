from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metarun.balance.pcgrad import PCGrad
from metarun.types import LOTS


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lots(tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(seed))


def weights(slopes: Tensor, seed: int = 0) -> Tensor:
    found, entries = PCGrad()(torch.ones(len(slopes)), slopes @ slopes.T, {LOTS: lots(len(slopes), seed)})
    assert not entries
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (3, 2), (7, 4), (10, 40)])
def test_the_weights_are_torchjds_over_the_number_of_tasks(
    tasks: int, size: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sums the projected slopes; both project in the same order here."""
    jd = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed: pip install metarun[dev]")
    slopes = drawn(tasks, size, seed=seed)
    orders: Iterator[Tensor] = iter(lots(tasks, seed).argsort(1))
    monkeypatch.setattr(torch, "randperm", lambda _: next(orders))
    expected = jd.PCGradWeighting()(slopes @ slopes.T) / tasks
    assert torch.allclose(weights(slopes, seed), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_slopes_the_step_opposes_neither(seed: int) -> None:
    slopes = drawn(2, 3, seed=seed)
    slopes[1] = slopes[0].norm() * slopes[1] / slopes[1].norm() - 3 * slopes[0]
    step = weights(slopes) @ slopes
    assert (slopes @ step >= -1e-12).all()
    assert (slopes @ slopes.mean(0)).min() < 0  # as the mean does


def test_two_opposed_slopes_lose_what_they_have_along_each_other() -> None:
    """g = (1, 0), (−1, 1): projected they are (½, ½) and (0, 1), whose mean is (¼, ¾)."""
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    assert torch.allclose(weights(slopes) @ slopes, torch.tensor([0.25, 0.75]))


def test_where_nothing_conflicts_it_is_the_mean() -> None:
    assert torch.allclose(weights(drawn(5, 8).abs()), torch.full((5,), 0.2, dtype=torch.float64))


def test_a_slope_of_zero_leaves_the_others_what_they_are_without_it() -> None:
    slopes = drawn(3, 4)
    slopes[1], slopes[2] = 0, 0.1 - slopes[0]
    assert torch.allclose(weights(slopes) @ slopes, weights(slopes[[0, 2]]) @ slopes[[0, 2]] * 2 / 3)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-15])
def test_a_slope_whose_square_is_no_number_in_single_precision_makes_no_infinity(scale: float) -> None:
    slopes = drawn(3, 4).float() * torch.tensor([[1.0], [scale], [1.0]])
    assert (slopes[0] @ slopes[1] < 0) and (weights(slopes) @ slopes).isfinite().all()


def test_the_order_of_projection_is_that_of_the_lots() -> None:
    slopes = drawn(4, 3)
    found = {tuple(weights(slopes, seed).tolist()) for seed in range(8)}
    assert len(found) > 1 and weights(slopes, 3).equal(weights(slopes, 3))
