"""The slope of one task's loss by its parameters, in whatever way is fastest where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.types import Metrics, Params


def gradient(loss: Callable[..., Tensor], params: Params, adapted: Collection[str], *args: Any) -> Params:
    """∇ loss(params, *args) with respect to the entries named in `adapted`; no other tensor of a task may be in it."""
    names = list(adapted)
    moving = [params[name] for name in names]
    fixed = {name: p for name, p in params.items() if name not in adapted}

    def value(moving: Sequence[Tensor], fixed: Params, *args: Any) -> Tensor:
        return loss({**fixed, **dict(zip(names, moving, strict=True))}, *args)

    further = torch.is_grad_enabled()
    if not mapped():
        slope = _slope(lambda moving: value(moving, fixed, *args), moving, further)
    elif any(map(torch._C._functorch.is_batchedtensor, moving)):
        leaves, form = tree_flatten((moving, fixed, *args))
        slope = Beneath.apply(lambda *leaves: value(*tree_unflatten(list(leaves), form)), len(moving), further, *leaves)
    else:  # what all tasks share is computed for all of them at once
        slope = torch.func.grad(value)(moving, fixed, *args)
    return dict(zip(names, slope, strict=True))


def mapped() -> bool:
    """Whether this is computed inside vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _slope(value: Callable[[list[Tensor]], Tensor], moving: list[Tensor], further: bool) -> tuple[Tensor, ...]:
    """∇ value(moving) by autograd; it can be differentiated `further`."""
    with torch.enable_grad():
        moving = [p if p.requires_grad else p.detach().requires_grad_() for p in moving]
        return torch.autograd.grad(value(moving), moving, create_graph=further, materialize_grads=True)


class Beneath(torch.autograd.Function):
    """∇ of every task's value by the first `count` of its tensors, taken by autograd beneath vmap.

    Tasks share none of these tensors, so the sum of their values has the gradients of all. torch.func.grad inside vmap
    would take the way back by vmap's rules too, which copy activations from one order of axes to another and back.
    """

    @staticmethod
    def forward(value: Callable[..., Tensor], count: int, further: bool, *leaves: Tensor) -> None:
        raise NotImplementedError("this is called inside vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: None) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[int | None, ...],
        value: Callable[..., Tensor],
        count: int,
        further: bool,
        *leaves: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        own, rest = dims[3 : 3 + count], dims[3 + count :]
        each = torch.vmap(value, in_dims=(*[0] * count, *rest), randomness=info.randomness)
        with torch.enable_grad():  # a view made without is no node of the graph
            moving = [of_each(p, dim, info.batch_size) for p, dim in zip(leaves, own, strict=False)]
        return _slope(lambda moving: each(*moving, *leaves[count:]).sum(), moving, further), (0,) * count


def of_each(t: Tensor, dim: int | None, tasks: int) -> Tensor:
    """What vmap hands to a rule of its own, with the tasks in front: [T, ...]."""
    return t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0)


def grad(fn: Callable[[Params], tuple[Tensor, Metrics]], params: Params) -> tuple[Params, Metrics]:
    """∇ of the first of what fn(params) returns, and the second: metrics."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss, metrics = fn(leaves)
    slope = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slope, strict=True)), metrics
