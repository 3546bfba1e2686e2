"""Pure tree maths: inner-loop steps, and the mapping of one task's function over many tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial

import torch
from torch import Tensor

from metarun.maths.gradient import gradient
from metarun.maths.remat import recomputed
from metarun.types import Batch, Params

Loss = Callable[[Params, Batch, int], Tensor]  # of the parameters, the support set and the number of the step


def sgd(
    loss: Loss,
    params: Params,
    support: Batch,
    lr: float,
    steps: int,
    adapted: Collection[str],
    first_order: bool,
    remat: bool = False,
) -> Iterator[Params]:
    """φ₀ = θ, φₖ₊₁ = φₖ − lr ∇loss(φₖ, support, k): yields φ₀ … φ_steps.

    With `first_order` the gradient is a constant: an outer derivative sees ∂φₖ₊₁/∂φₖ = I.
    With `remat` an outer derivative keeps the φₖ alone, and computes each step again.
    """
    names = sorted(adapted)

    def moved(params: Params, support: Batch, step: int) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            slope = gradient(loss, params, names, support, step)
        return tuple(torch.sub(params[name], slope[name], alpha=lr) for name in names)

    yield params
    for step in range(steps):
        move = partial(moved, step=step)
        fast = recomputed(move, params, support) if remat and not first_order else move(params, support)
        params = {**params, **dict(zip(names, fast, strict=True))}
        yield params


def adam(
    loss: Loss,
    params: Params,
    support: Batch,
    lr: float,
    steps: int,
    adapted: Collection[str],
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Iterator[Params]:
    """Adam with β₁ = 0: v ← β₂v + (1−β₂)g², φ ← φ − lr g / (√(v / (1−β₂ᵏ)) + ε): yields φ₀ … φ_steps."""
    yield params
    v = {name: torch.zeros_like(params[name]) for name in adapted}
    for step in range(steps):
        with torch.no_grad():
            slope = gradient(loss, params, adapted, support, step)
        v = {name: beta2 * v[name] + (1 - beta2) * g * g for name, g in slope.items()}
        unbias = 1 - beta2 ** (step + 1)
        moved = {n: params[n] - lr * g / ((v[n] / unbias).sqrt() + eps) for n, g in slope.items()}
        params = {**params, **moved}
        yield params


def last(iterator: Iterator[Params]) -> Params:
    """The final φ of a trajectory."""
    return deque(iterator, maxlen=1).pop()
