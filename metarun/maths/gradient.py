"""The slope of one task's loss by its parameters, in whatever way is fastest where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarun.types import Params, learned

Valued = tuple[Tensor, tuple[Tensor, ...]]  # a loss, and what is returned beside its slope


def gradient(loss: Callable[..., Tensor], params: Params, adapted: Collection[str], *args: Any) -> Params:
    """∇ loss(params, *args) with respect to the entries named in `adapted`; no other tensor of a task may be in it."""
    return gradient_and_rest(lambda *given: (loss(*given), {}), params, adapted, *args)[0]


def gradient_and_rest(
    fn: Callable[..., tuple[Tensor, Params]], params: Params, adapted: Collection[str], *args: Any
) -> tuple[Params, Params]:
    """fn(params, *args) returns (loss, rest); returns (∇loss by the entries named in `adapted`, rest). No other tensor
    of a task may be in it."""
    names, beside = list(adapted), list[str]()
    moving = [params[name] for name in names]
    fixed = {name: p for name, p in params.items() if name not in adapted}

    def value(moving: Sequence[Tensor], fixed: Params, *args: Any) -> Valued:
        loss, rest = fn({**fixed, **dict(zip(names, moving, strict=True))}, *args)
        beside[:] = rest
        return loss, tuple(rest.values())

    create_graph = torch.is_grad_enabled()
    if not mapped():
        args = tree_map(partial(laid_out, channels_last=not create_graph), args)
        found = _slope(lambda moving: value(moving, fixed, *args), moving, create_graph)
    elif any(map(torch._C._functorch.is_batchedtensor, moving)):
        leaves, form = tree_flatten((moving, fixed, *args))

        def of_leaves(*leaves: Tensor) -> Valued:
            return value(*tree_unflatten(list(leaves), form))

        found = GradientBeneathVmap.apply(of_leaves, len(moving), create_graph, *leaves)
    else:  # what all tasks share is computed for all of them at once
        slope, rest = torch.func.grad(value, has_aux=True)(moving, fixed, *args)
        found = (*slope, *rest)
    return dict(zip(names, found, strict=False)), dict(zip(beside, found[len(names) :], strict=True))


def laid_out(t: Any, channels_last: bool) -> Any:
    """Images in the layout in which a CPU's convolutions are fastest: channels last for the way there and back, but not
    for the way back of that."""
    if not isinstance(t, Tensor) or t.ndim != 4 or not t.is_cpu or (t.stride(1) == 1) == channels_last:
        return t
    return t.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def mapped() -> bool:
    """Whether this is computed inside vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _slope(value: Callable[[list[Tensor]], Valued], moving: list[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """∇ of the loss that value(moving) gives, by autograd, itself differentiable with `create_graph`; then the rest.

    Of tensors that were made of one another each has the slope by itself: views are nodes of their own.
    """
    with torch.enable_grad():
        moving = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in moving]
        loss, rest = value(moving)
        return *torch.autograd.grad(loss, moving, create_graph=create_graph, materialize_grads=True), *rest


class GradientBeneathVmap(torch.autograd.Function):
    """∇ of every task's loss by the first `count` of its tensors, taken by autograd beneath vmap; then the rest.

    Tasks share none of these tensors, so the sum of their losses has the gradients of all. torch.func.grad inside vmap
    would take the way back by vmap's rules too, which copy activations from one order of axes to another and back.
    """

    @staticmethod
    def forward(value: Callable[..., Valued], count: int, create_graph: bool, *leaves: Tensor) -> None:
        raise NotImplementedError("this is called inside vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: None) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[int | None, ...],
        value: Callable[..., Valued],
        count: int,
        create_graph: bool,
        *leaves: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        own, rest = dims[3 : 3 + count], dims[3 + count :]
        each = torch.vmap(value, in_dims=(*[0] * count, *rest), randomness=info.randomness)
        with torch.enable_grad():  # a view made without is no node of the graph
            moving = [of_each(p, dim, info.batch_size) for p, dim in zip(leaves, own, strict=False)]

        def total(moving: list[Tensor]) -> Valued:
            losses, rest = each(*moving, *leaves[count:])
            return losses.sum(), rest

        found = _slope(total, moving, create_graph)
        return found, (0,) * len(found)


def of_each(t: Tensor, dim: int | None, tasks: int) -> Tensor:
    """What vmap hands to a rule of its own, with the tasks in front: [T, ...]."""
    return t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0)


def grad(fn: Callable[[Params], tuple[Tensor, Any]], params: Params) -> tuple[Params, Any]:
    """fn returns (loss, rest); returns (∇loss by the learned entries, rest)."""
    if mapped():
        return torch.func.grad(lambda own: fn({**params, **own}), has_aux=True)(learned(params))
    leaves = leaves_of(params)
    loss, rest = fn({**params, **leaves})
    slope = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slope, strict=True)), rest


def leaves_of(params: Params) -> Params:
    """The learned entries, as leaves of a graph of their own."""
    return {name: p.detach().requires_grad_() for name, p in learned(params).items()}


def pulled_back(outputs: Tensor, leaves: Params, slopes: Tensor) -> Params:
    """Slopes [H, *outputs' shape] by some outputs -> slopes by the leaves they were computed from: [H, ...] by name.

    On a CPU one after the other is faster wherever there are convolutions, whose ways back vmap takes apart.
    """
    into = list(leaves.values())
    if not outputs.is_cpu:
        rows = torch.autograd.grad(outputs, into, slopes, is_grads_batched=True, materialize_grads=True)
        return dict(zip(leaves, rows, strict=True))
    each = [torch.autograd.grad(outputs, into, s, retain_graph=True, materialize_grads=True) for s in slopes]
    return {name: torch.stack([row[i] for row in each]) for i, name in enumerate(leaves)}
