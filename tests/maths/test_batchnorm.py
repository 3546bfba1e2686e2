from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.batchnorm import Normalised, batch_norm

SHAPES = [(5, 3), (2, 3, 3, 2)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return Normalised.apply(x, weight, bias, 1e-5)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs(shape: tuple[int, ...]) -> None:
    inputs = (drawn(*shape), drawn(3, seed=1), drawn(3, seed=2))
    expected = F.batch_norm(inputs[0], None, None, *inputs[1:], training=True)
    assert torch.allclose(by_hand(*inputs), expected, atol=1e-12)
    assert torch.equal(batch_norm(*inputs, 1e-5), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_derivatives_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    inputs = tuple(t.requires_grad_() for t in (drawn(*shape), drawn(3, seed=1), drawn(3, seed=2)))
    assert torch.autograd.gradcheck(by_hand, inputs)
    assert torch.autograd.gradgradcheck(by_hand, inputs)


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, 0), (0, 0, 0), (1, 0, 1), (2, 1, None)])
def test_vmap_is_a_loop(dims: tuple[int | None, ...]) -> None:
    """For values and for second derivatives, whichever of the inputs each task has for itself."""
    shapes = ((4, 3, 2, 2), (3,), (3,))
    parts = [drawn(5, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    inputs = tuple(p[0] if d is None else p.movedim(0, d) for p, d in zip(parts, dims))

    def twice(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        def once(*inputs: Tensor) -> Tensor:
            slopes = torch.func.grad(lambda *a: batch_norm(*a, 1e-5).pow(3).sum(), (0, 1, 2))(*inputs)
            return sum(s.pow(2).sum() for s in slopes)

        return torch.func.grad(once, (0, 1, 2))(x, weight, bias)

    def task(i: int) -> tuple[Tensor, ...]:
        return tuple(t if d is None else t.select(d, i) for t, d in zip(inputs, dims))

    found = torch.vmap(twice, dims)(*inputs)
    assert all(torch.allclose(f[i], e, rtol=1e-9) for i in range(5) for f, e in zip(found, twice(*task(i))))


def test_a_third_derivative_is_refused() -> None:
    x, weight, bias = (t.requires_grad_() for t in (drawn(4, 3), drawn(3, seed=1), drawn(3, seed=2)))
    first = torch.autograd.grad(by_hand(x, weight, bias).pow(3).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"no third derivative here; take backbone.norm=group"):
        torch.autograd.grad(second.pow(2).sum(), x)
