from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.implicit import conjugate_gradients, curvature_solve
from metarun.maths.net import Net
from metarun.types import Episode, Params

SCALE, SHIFT = 0.3, 3.0


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size: int, seed: int) -> Tensor:
    root = drawn(size, size, seed=seed)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def test_as_many_iterations_as_unknowns_solve_each_system_exactly() -> None:
    matrices, right = torch.stack([positive(6, seed=s) for s in range(3)]), drawn(3, 6, seed=9)
    found = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], right, 6)
    assert torch.allclose(found, torch.linalg.solve(matrices, right), atol=1e-9)


def test_after_few_iterations_the_error_is_the_least_of_its_krylov_space() -> None:
    """K iterations reach the x in the span of b, Ab, ..., A^(K−1)b with the least ½xᵀAx − bᵀx."""
    matrix, right = positive(8, seed=0), drawn(1, 8, seed=1)
    powers = [torch.linalg.matrix_power(matrix, k) @ right[0] for k in range(3)]
    basis, _ = torch.linalg.qr(torch.stack(powers, 1))
    best = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ right[0])
    assert torch.allclose(conjugate_gradients(lambda v: v @ matrix, right, 3)[0], best, atol=1e-9)


def test_a_row_that_has_arrived_stays_there_and_gives_no_nan() -> None:
    right = torch.stack([torch.zeros(4), torch.ones(4)]).double()
    assert torch.allclose(conjugate_gradients(lambda v: 2 * v, right, 9), right / 2)


def test_the_solution_is_that_of_the_dense_second_derivative(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], plain_logits: Callable[..., Tensor]
) -> None:
    net, tasks = conv_net(), episode()
    params = {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}
    names, sizes = list(params), [p.numel() for p in params.values()]
    right = drawn(3, sum(sizes), seed=3)

    def named(v: Tensor) -> Params:
        return {n: part.view_as(params[n]) for n, part in zip(names, v.split(sizes), strict=True)}

    def solved(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
        batch: Any = tasks.support._replace(x=x, y={"class": y})
        found = curvature_solve(net.loss, params, names, named(right), SCALE, SHIFT, 50, batch)
        return torch.cat([found[name].flatten() for name in names])

    x, y = tasks.support.x, tasks.support.y["class"]
    mapped = torch.vmap(solved)(x, y, right)
    flat = torch.cat([p.flatten() for p in params.values()])
    for t in range(3):
        hessian: Any = torch.autograd.functional.hessian(
            lambda v, t=t: F.cross_entropy(plain_logits(named(v), x[t], x[t]), y[t]), flat
        )
        expected = torch.linalg.solve(SHIFT * torch.eye(len(flat)).double() + SCALE * hessian, right[t])
        assert torch.allclose(mapped[t], expected, atol=1e-6)
        assert torch.allclose(solved(x[t], y[t], right[t]), expected, atol=1e-6)


@pytest.mark.parametrize("beneath_vmap", [True, False])
def test_an_entry_without_curvature_is_divided_by_the_shift(beneath_vmap: bool) -> None:
    """Of a² + 3b: H is 2 by a, and b has none."""

    def solved(right: Tensor) -> Tensor:
        params = {"a": right[0] * 0, "b": right[1] * 0}
        sides = {"a": right[0], "b": right[1]}
        found = curvature_solve(lambda p: p["a"] ** 2 + 3 * p["b"], params, ["a", "b"], sides, 1.0, 2.0, 2)
        return torch.stack([found["a"], found["b"]])

    right = torch.tensor([[8.0, 8], [4, 2]])
    found = torch.vmap(solved)(right) if beneath_vmap else torch.stack([solved(row) for row in right])
    assert torch.allclose(found, right / torch.tensor([4.0, 2]))
