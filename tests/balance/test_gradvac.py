from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.gradvac import TARGETS, GradVac
from metarun.balance.pcgrad import PCGrad
from metarun.types import LOTS, Params


def lots(tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(tasks, tasks, generator=torch.Generator().manual_seed(seed))


def asked(slopes: Tensor, targets: Tensor, beta: float, seed: int = 0) -> tuple[Tensor, Params]:
    kept = {LOTS: lots(len(slopes), seed), TARGETS: targets}
    return GradVac(beta)(torch.ones(len(slopes)), slopes @ slopes.T, kept)


def test_weights_and_targets_are_torchjds_up_to_the_number_of_tasks(
    slopes: Tensor, jd: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over three steps; both compare in the same order."""
    tasks = len(slopes)
    orders: Iterator[Tensor]

    def without_itself(order: Tensor, row: int) -> Tensor:
        order = order[order != row]
        return order - (order > row).long()  # theirs counts the others only

    theirs, targets = jd.GradVacWeighting(beta=0.3, eps=0.0), torch.zeros(tasks, tasks, dtype=torch.float64)
    monkeypatch.setattr(torch, "randperm", lambda _: next(orders))
    for step in range(3):
        some = slopes + 0.1 * step * slopes.flip(0)
        orders = iter([without_itself(order, row) for row, order in enumerate(lots(tasks, step).argsort(1))])
        expected = theirs(some @ some.T) / tasks
        weights, entries = asked(some, targets, 0.3, step)
        targets = entries[TARGETS]
        assert ((weights - expected) @ some).norm() < 1e-5 * some.norm(dim=1).max()
        assert torch.allclose(targets, theirs._phi_t, atol=1e-7)


def test_two_slopes_reach_their_target_cosine() -> None:
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    targets = torch.full((2, 2), 0.6, dtype=torch.float64)
    for row in (0, 1):
        only = targets.clone()
        only[1 - row] = -1.0  # the other slope stays
        weights, _ = asked(slopes, only, 0.0)
        moved = 2 * weights @ slopes - slopes[1 - row]
        cosine = moved @ slopes[1 - row] / moved.norm() / slopes[1 - row].norm()
        assert cosine.item() == pytest.approx(0.6) and not torch.allclose(moved, slopes[row])


@pytest.mark.parametrize("seed", range(5))
def test_with_targets_of_zero_it_is_pcgrad(seed: int, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(5, "conflicting", seed)
    expected, _ = PCGrad()(torch.ones(5), slopes @ slopes.T, {LOTS: lots(5, seed)})
    weights, entries = asked(slopes, torch.zeros(5, 5, dtype=torch.float64), 0.0, seed)
    assert torch.allclose(weights, expected, rtol=1e-9) and not entries[TARGETS].any()


def test_targets_follow_the_cosines_that_are_seen(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes, targets = drawn_slopes(2).abs(), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(200):
        _, entries = asked(slopes, targets, 0.1)
        targets = entries[TARGETS]
    cosine = torch.cosine_similarity(slopes[0], slopes[1], dim=0)
    assert torch.allclose(targets, cosine * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
