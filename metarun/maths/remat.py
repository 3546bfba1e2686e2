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

    @staticmethod
    def forward(function: Callable[..., Tensors], states: Any, *leaves: Tensor) -> Tensors:
        return function(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.function, ctx.states, *leaves = inputs
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), _drawing_from(*ctx.states):
            again = ctx.function(*leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        pulled = iter(torch.autograd.grad(again, wanted, slopes, materialize_grads=True))
        return None, None, *(next(pulled) if need else None for need in needed)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], function: Callable[..., Tensors], states: Any, *leaves: Tensor
    ) -> tuple[Tensors, tuple[int, ...]]:
        """Beneath vmap, where autograd is itself."""
        outputs = Recomputed.apply(torch.vmap(function, dims[2:], randomness=info.randomness), states, *leaves)
        return outputs, (0,) * len(outputs)


@contextmanager
def _drawing_from(cpu: Tensor, devices: list[int], states: list[Tensor]) -> Iterator[None]:
    """The same numbers again; the generators go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield
