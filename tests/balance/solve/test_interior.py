from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarun.balance.solve.interior import minimum


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(size: int, rows: int, linear: Tensor, simplex: bool) -> tuple[Tensor, Tensor]:
    """The minimum of ½ xᵀGx + qᵀx, and ∇f there; one for each row of q."""
    factor = drawn(size, rows) / rows**0.5
    gram = factor @ factor.T
    start = torch.full_like(linear, 1 / size)
    x = minimum(lambda x: x @ gram + linear, lambda x: gram, start, simplex)
    return x, x @ gram + linear


@pytest.mark.parametrize("size", [2, 5, 32])
def test_over_positive_numbers_every_slope_is_zero_or_its_number_is(size: int) -> None:
    x, slope = quadratic(size, 2 * size, drawn(4, size, seed=1), simplex=False)
    assert (x > 0).all() and (slope > -1e-9).all() and (x * slope).abs().max() < 1e-9
    assert (x > 1e-6).any() and (slope > 1e-6).any()


@pytest.mark.parametrize(("size", "rows"), [(2, 4), (5, 10), (32, 64), (32, 8)])
def test_on_the_simplex_all_numbers_that_are_not_zero_have_the_least_slope(size: int, rows: int) -> None:
    x, slope = quadratic(size, rows, drawn(4, size, seed=1), simplex=True)
    above = slope - slope.amin(1, keepdim=True)
    assert torch.allclose(x.sum(1), torch.ones(4, dtype=torch.float64)) and (x * above).abs().max() < 1e-9
    assert size == 2 or (above > 1e-6).any()


def test_the_end_of_the_path_may_be_a_point_within() -> None:
    """min x − μ log x is at x = μ."""
    end = minimum(torch.ones_like, lambda x: torch.zeros(3, 3), torch.ones(3), end=0.25)
    assert torch.allclose(end, torch.full((3,), 0.25), rtol=1e-4)


def test_a_function_that_is_not_quadratic_is_followed_too() -> None:
    """Σ c exp(x) − x has its minimum at x = −log c, or at 0."""
    c = torch.tensor([0.2, 0.7, 3.0], dtype=torch.float64)
    found = minimum(lambda x: c * x.exp() - 1, lambda x: (c * x.exp()).diag(), torch.ones_like(c))
    assert torch.allclose(found, (-c.log()).clamp(min=0), atol=1e-9)
