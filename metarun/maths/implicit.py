"""Linear systems in the second derivative H of a task's loss, solved by products H v alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.maths.gradient import of_each
from metarun.types import Params


def curvature_solve(
    loss: Callable[..., Tensor],
    params: Params,
    adapted: Collection[str],
    right: Params,
    scale: float,
    shift: float,
    iterations: int,
    *args: Any,
) -> Params:
    """The u with (shift I + scale H) u = right, after so many iterations from 0; H = ∇² loss(params, *args) by the
    entries named in `adapted`, which are those of `right`."""
    names = list(adapted)
    fixed = {name: p for name, p in params.items() if name not in adapted}
    leaves, form = tree_flatten((fixed, *args))

    def value(*tensors: Tensor) -> Tensor:
        fixed, *args = tree_unflatten(list(tensors[len(names) :]), form)
        return loss({**fixed, **dict(zip(names, tensors, strict=False))}, *args)

    sides = [side[name] for side in (params, right) for name in names]
    solved = Solved.apply(value, (scale, shift, iterations), len(names), *sides, *leaves)
    return dict(zip(names, solved, strict=True))


class Solved(torch.autograd.Function):
    """Of every task's value by the first `count` of its tensors; the next `count` are the right side.

    Inside vmap it is computed beneath, where autograd is itself: one graph of the slope serves all products.
    """

    @staticmethod
    def forward(value: Callable[..., Tensor], keys: tuple[float, float, int], count: int, *leaves: Tensor) -> Any:
        sides, rest = leaves[: 2 * count], leaves[2 * count :]
        one = [t[None] for t in sides]
        found = _solve(lambda at: value(*(t[0] for t in at), *rest), one[:count], one[count:], *keys)
        return tuple(t[0] for t in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: a solution has no derivative here."""

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[int | None, ...],
        value: Callable[..., Tensor],
        keys: tuple[float, float, int],
        count: int,
        *leaves: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        own, rest = dims[3 : 3 + 2 * count], dims[3 + 2 * count :]
        each = torch.vmap(value, in_dims=(*[0] * count, *rest), randomness=info.randomness)
        sides = [of_each(t, dim, info.batch_size) for t, dim in zip(leaves, own, strict=False)]
        found = _solve(lambda at: each(*at, *leaves[2 * count :]).sum(), sides[:count], sides[count:], *keys)
        return found, (0,) * count


def _solve(
    total: Callable[[list[Tensor]], Tensor],
    at: Sequence[Tensor],
    right: Sequence[Tensor],
    scale: float,
    shift: float,
    iterations: int,
) -> tuple[Tensor, ...]:
    """Solves for T tasks at once, whose tensors [T, ...] have no entry in common and whose values add up to `total`."""
    with torch.enable_grad():
        at = [t.detach().requires_grad_() for t in at]
        slope = torch.autograd.grad(total(at), at, create_graph=True, materialize_grads=True)
    bent = [g for g in slope if g.requires_grad]  # the others are constants
    sizes = [t[0].numel() for t in at]

    def parts(v: Tensor) -> list[Tensor]:
        return [part.reshape(t.shape) for part, t in zip(v.split(sizes, 1), at, strict=True)]

    def product(v: Tensor) -> Tensor:
        sides = [part for part, g in zip(parts(v), slope, strict=True) if g.requires_grad]
        curved = torch.autograd.grad(bent, at, sides, retain_graph=True, materialize_grads=True)
        return shift * v + scale * _rows(curved)

    return tuple(parts(conjugate_gradients(product, _rows(right), iterations)))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors [T, ...] in one: [T, P]."""
    return torch.cat([t.reshape(len(t), -1) for t in tensors], 1)


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Of each row of `right` [T, P] the x with A x = right, where product(x) is A x and A is symmetric and positive.

    All rows take all iterations; one that has arrived stays where it is.
    """
    x, left, way = torch.zeros_like(right), right, right
    size = left.square().sum(1, keepdim=True)
    for _ in range(iterations):
        image = product(way)
        step = _ratio(size, (way * image).sum(1, keepdim=True))
        x, left = x + step * way, left - step * image
        size, before = left.square().sum(1, keepdim=True), size
        way = left + _ratio(size, before) * way
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is."""
    return torch.where(b == 0, 0.0, a / b)
