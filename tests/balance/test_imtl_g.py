from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.imtl_g import IMTLG

Weighed = Callable[..., Tensor]


def test_the_projections_on_all_slopes_are_equally_long(slopes: Tensor, weighed: Weighed) -> None:
    weights = weighed(IMTLG(), slopes)
    along = slopes @ (weights @ slopes) / slopes.norm(dim=1)
    assert weights.sum().item() == pytest.approx(1) and torch.allclose(along, along.mean().expand_as(along), rtol=1e-5)


def test_the_weights_are_torchjds(slopes: Tensor, weighed: Weighed, jd: ModuleType) -> None:
    assert torch.allclose(weighed(IMTLG(), slopes), jd.IMTLGWeighting()(slopes @ slopes.T), atol=1e-5)


def test_more_slopes_than_numbers_give_a_step_that_is_as_even_as_can_be(weighed: Weighed) -> None:
    """Three slopes in a plane: of all steps along the same sum of weights none has projections nearer to equal ones."""
    slopes = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units = slopes / slopes.norm(dim=1, keepdim=True)
    step = weighed(IMTLG(), slopes) @ slopes
    best = torch.linalg.lstsq(units, torch.ones(3, 1, dtype=torch.float64)).solution[:, 0]
    assert torch.allclose(step / step.norm(), best / best.norm() * (step @ best).sign(), atol=1e-6)


def test_opposed_slopes_whose_weights_sum_to_nothing_give_no_step(weighed: Weighed) -> None:
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert not weighed(IMTLG(), slopes).any()
