"""Rematerialisation: what a function computed is not kept for its derivative, but computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

Tensors = tuple[Tensor, ...]


def recomputed(function: Callable[..., Tensors], *args: Any) -> Tensors:
    """function(*args), of which autograd keeps the arguments alone. It may be inside vmap, and may draw numbers."""
    leaves, form = tree_flatten(args)
    states = torch.get_rng_state(), *get_device_states(*leaves)
    return Recomputed.apply(lambda *leaves: function(*tree_unflatten(list(leaves), form)), states, *leaves)


class Recomputed(torch.autograd.Function):
    """torch.utils.checkpoint does this with hooks, which vmap does not take."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Tensors], states: Any, *leaves: Tensor) -> Tensors:
        return function(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.function, ctx.states, *leaves = inputs
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        leaves = ctx.saved_tensors
        real = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

        def of_real(*some: Tensor) -> Tensors:
            changed = dict(zip(real, some, strict=True))
            return ctx.function(*(changed.get(i, leaf) for i, leaf in enumerate(leaves)))

        with _drawing_from(*ctx.states):
            _, pull, *_ = torch.func.vjp(of_real, *(leaves[i] for i in real))
        pulled = dict(zip(real, pull(slopes), strict=True))
        return None, None, *(pulled.get(i) for i in range(len(leaves)))


@contextmanager
def _drawing_from(cpu: Tensor, devices: list[int], states: list[Tensor]) -> Iterator[None]:
    """The same numbers again; the generators go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield
