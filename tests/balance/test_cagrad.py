from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.balance.cagrad import CAGrad
from metarun.balance.mgda import MGDA

Weighed = Callable[..., Tensor]


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_no_step_of_the_ball_serves_the_worst_served_objective_better(
    c: float, slopes: Tensor, weighed: Weighed
) -> None:
    """Its least product is what duality says is the most: ⟨ḡ, s⟩ + c ‖ḡ‖ ‖s‖ for every weighted mean s."""
    mean = slopes.mean(0)
    step = (1 + c) * weighed(CAGrad(c), slopes) @ slopes
    radius, scale = c * mean.norm(), slopes.square().sum(1).max()
    assert (step - mean).norm() < radius * (1 + 1e-6)
    s = step - mean  # is along the best one
    along = slopes @ step
    least = along.min()
    weights = (weighed(CAGrad(c), slopes) * (1 + c) - 1 / len(slopes)).clamp(min=0)
    best = weights / weights.sum() @ slopes
    assert torch.allclose(s / s.norm(), best / best.norm(), atol=1e-6)
    assert (least - (mean @ best + radius * best.norm())).abs() / scale < 1e-6


def test_with_c_of_zero_it_is_the_mean(slopes: Tensor, weighed: Weighed) -> None:
    assert torch.allclose(weighed(CAGrad(0.0), slopes), torch.full_like(slopes[:, 0], 1 / len(slopes)))


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_the_weights_are_torchjds_over_one_plus_c(
    slopes: Tensor, weighed: Weighed, jd: ModuleType, cvxpy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its solver is told to be exact."""
    tight = {f"tol_{name}": 1e-14 for name in ("gap_abs", "gap_rel", "feas")}
    solve = cvxpy.Problem.solve
    monkeypatch.setattr(cvxpy.Problem, "solve", lambda self, solver: partial(solve, self, solver)(**tight))
    theirs = jd.CAGradWeighting(c=0.5, norm_eps=0.0)(slopes @ slopes.T)
    ours = 1.5 * weighed(CAGrad(0.5), slopes)
    assert (ours @ slopes - theirs @ slopes).norm() < 1e-5 * slopes.norm(dim=1).max()


def test_with_a_large_c_the_step_is_along_mgdas(weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(5)
    step, shortest = weighed(CAGrad(1e5), slopes) @ slopes, weighed(MGDA(), slopes) @ slopes
    assert torch.allclose(step / step.norm(), shortest / shortest.norm(), atol=1e-4)
