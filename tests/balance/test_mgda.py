from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from metarun.balance.mgda import MGDA

Weighed = Callable[..., Tensor]


def test_the_step_is_the_shortest_of_all_weighted_means(slopes: Tensor, weighed: Weighed) -> None:
    """Where it is, no slope makes an obtuse angle with it: ⟨g_h, step⟩ ≥ ‖step‖², with equality where w_h > 0."""
    weights = weighed(MGDA(), slopes)
    step, scale = weights @ slopes, slopes.square().sum(1).max()
    assert (weights > -1e-15).all() and weights.sum().item() == pytest.approx(1, abs=1e-12)
    above = (slopes @ step - step @ step) / scale
    assert above.min() > -1e-9 and (weights * above).abs().max() < 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_of_two_it_is_the_closed_form(seed: int, weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(2, "random" if seed % 2 else "parallel", seed)
    one, two = slopes
    first = ((two - one) @ two / (one - two).square().sum()).clamp(0, 1)
    assert torch.allclose(weighed(MGDA(), slopes), torch.stack([first, 1 - first]), atol=1e-9)


def test_torchjds_steps_lead_to_the_same_or_end_before_it(slopes: Tensor, weighed: Weighed, jd: ModuleType) -> None:
    """Theirs is Frank and Wolfe's, whose distance is known: ‖step − ours‖² ≤ ‖step‖² − ‖ours‖²."""
    ours = weighed(MGDA(), slopes) @ slopes
    theirs = jd.MGDAWeighting(epsilon=1e-9, max_iters=400)(slopes @ slopes.T) @ slopes
    scale = slopes.square().sum(1).max()
    gap = (theirs @ theirs - ours @ ours) / scale
    assert gap > -1e-10 and (theirs - ours).square().sum() / scale <= gap + 1e-9
    if len(slopes) == 2:
        assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_depends_on_no_scale(scale: float, weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(5)
    assert torch.allclose(weighed(MGDA(), scale * slopes), weighed(MGDA(), slopes), atol=1e-9)


def test_slopes_a_thousand_times_as_long_as_others_are_weighed_as_exactly(
    weighed: Weighed, drawn_slopes: Callable[..., Tensor]
) -> None:
    slopes = drawn_slopes(5) * torch.logspace(0, 3, 5, dtype=torch.float64)[:, None]
    step = weighed(MGDA(), slopes) @ slopes
    assert (slopes @ step > (step @ step) * (1 - 1e-4)).all()
