from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.upgrad import UPGrad

Weighed = Callable[..., Tensor]


def test_the_step_makes_no_objective_worse_to_first_order(slopes: Tensor, weighed: Weighed) -> None:
    step = weighed(UPGrad(), slopes) @ slopes
    assert (slopes @ step).min() > -1e-7 * slopes.square().sum(1).max()


def test_where_nothing_conflicts_it_is_the_mean(weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    assert torch.allclose(weighed(UPGrad(), drawn_slopes(5).abs()), torch.full((5,), 0.2, dtype=torch.float64))


def test_the_step_is_torchjds(slopes: Tensor, weighed: Weighed, jd: ModuleType) -> None:
    """Told to add nothing to the Gram matrix that a step could show."""
    pytest.importorskip("quadprog", reason="quadprog is not installed: pip install metarun[dev]")
    pytest.importorskip("qpsolvers", reason="qpsolvers is not installed: pip install metarun[dev]")
    projector = type(jd.UPGradWeighting().projector)(norm_eps=0.0, reg_eps=1e-12)
    theirs = jd.UPGradWeighting(projector=projector)(slopes @ slopes.T)
    assert ((weighed(UPGrad(), slopes) - theirs) @ slopes).norm() < 1e-5 * slopes.norm(dim=1).max()


def test_two_slopes_are_each_projected_on_the_others_normal_plane(weighed: Weighed) -> None:
    """g = (1, 0), (−1, 1): projected they are (½, ½) and (0, 1), whose mean is (¼, ¾)."""
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(
        weighed(UPGrad(), slopes) @ slopes, torch.tensor([0.25, 0.75], dtype=torch.float64), atol=1e-7
    )
