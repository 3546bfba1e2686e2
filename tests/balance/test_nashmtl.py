from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.balance.nashmtl import NashMTL

Weighed = Callable[..., Tensor]


def test_it_solves_g_a_equals_one_over_a(slopes: Tensor, weighed: Weighed) -> None:
    weights = weighed(NashMTL(), slopes)
    products = weights * (slopes @ (weights @ slopes))
    assert (weights > 0).all() and weights.sum().item() == pytest.approx(1)
    assert torch.allclose(products, products.mean().expand_as(products), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_the_weights_are_torchjds_over_their_sum_where_those_are_a_solution(
    slopes: Tensor, weighed: Weighed, jd: ModuleType, cvxpy: Any
) -> None:
    """Its chain of convex programs does not always arrive."""
    pytest.importorskip("ecos", reason="ecos is not installed: pip install metarun[dev]")
    theirs = jd.NashMTL(n_tasks=len(slopes), max_norm=0, optim_niter=100).weighting(slopes)
    products = theirs * (slopes @ (theirs @ slopes))
    if not torch.allclose(products, products.mean().expand_as(products), rtol=1e-4):
        pytest.skip("TorchJD's does not solve its own equation here")
    assert torch.allclose(weighed(NashMTL(), slopes), theirs / theirs.sum(), atol=1e-5)


def test_the_step_does_not_depend_on_how_long_slopes_are(weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes, longer = drawn_slopes(5), torch.logspace(-2, 2, 5, dtype=torch.float64)[:, None]
    one, other = (weighed(NashMTL(), s) @ s for s in (slopes, longer * slopes))
    assert torch.allclose(one / one.norm(), other / other.norm(), atol=1e-7)


def test_orthogonal_slopes_get_weights_of_one_over_their_length(weighed: Weighed) -> None:
    lengths = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert torch.allclose(weighed(NashMTL(), lengths.diag()), (1 / lengths) / (1 / lengths).sum())
