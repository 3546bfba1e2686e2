"""The inner loop of one task: gradient steps from θ, and the meta-gradient of what they arrive at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from metarun.maths.gradient import gradient
from metarun.maths.losses import judge
from metarun.maths.remat import recomputed
from metarun.types import MEMORY, Algorithm, Batch, Episode, Metrics, ParallelMap, Params, learned, memory, told

Loss = Callable[[Params, Batch, int], Tensor]  # of the parameters, the support set and the number of the step
Slope = Callable[[Params, Batch, int], Params]  # of the same: slopes, and next values of `memory.` entries
Update = Callable[[Params, Params, int], Params]  # φ, its slope, the number of the step -> the entries that move

ADAM = f"{MEMORY}adam."
ADAM_SQUARE, ADAM_STEPS = f"{ADAM}square.", f"{ADAM}steps"


def descent(lr: float) -> Update:
    """The rule φ − lr · slope."""
    return lambda fast, slope, _: {name: torch.sub(fast[name], g, alpha=lr) for name, g in slope.items()}


def sgd(
    loss: Loss,
    params: Params,
    support: Batch,
    lr: float | Update,
    steps: int,
    adapted: Collection[str],
    first_order: bool,
    remat: bool = False,
) -> Iterator[Params]:
    """φ₀ = θ, φₖ₊₁ = φₖ − lr ∇loss(φₖ, support, k): yields φ₀ … φ_steps.

    `lr` may be a rule of its own; what it has learned stands in φ. `adapted` names the entries that have a slope.
    With `first_order` the gradient is a constant: an outer derivative sees ∂φₖ₊₁/∂φₖ = I.
    With `remat` an outer derivative keeps the φₖ alone, and computes each step again.
    """
    names = sorted(adapted)

    def slope(params: Params, support: Batch, step: int) -> Params:
        return gradient(loss, params, names, support, step)

    return descend(slope, params, support, lr, steps, names, first_order, remat)


def descend(
    slope: Slope,
    params: Params,
    support: Batch,
    lr: float | Update,
    steps: int,
    moving: Sequence[str],
    first_order: bool,
    remat: bool = False,
) -> Iterator[Params]:
    """`sgd` down a slope that is a rule of its own. `moving` names the entries that have a slope or, as `memory.` ones,
    a next value; where the rule returns none, the value stays."""
    update = descent(lr) if isinstance(lr, float | int) else lr

    def moved(params: Params, support: Batch, step: int) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            found = slope(params, support, step)
        new = {**params, **update(params, learned(found), step), **memory(found)}
        return tuple(new[name] for name in moving)

    yield params
    for step in range(steps):
        move = partial(moved, step=step)
        fast = recomputed(move, params, support) if remat and not first_order else move(params, support)
        params = {**params, **dict(zip(moving, fast, strict=True))}
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
    """Adam with β₁ = 0: v ← β₂v + (1−β₂)g², φ ← φ − lr g / (√(v / (1−β₂ᵏ)) + ε): yields φ₀ … φ_steps.

    k is the step, and v starts at 0, in each task; but where θ has `moments` both go on from those, and φ has the next.
    """
    yield params
    taken = params.get(ADAM_STEPS, 0)
    v = {name: params.get(ADAM_SQUARE + name, torch.zeros_like(params[name])) for name in adapted}
    for step in range(steps):
        with torch.no_grad():
            slope = gradient(loss, params, adapted, support, step)
        v = {name: beta2 * v[name] + (1 - beta2) * g * g for name, g in slope.items()}
        unbias = 1 - beta2 ** (taken + step + 1)
        moved = {n: params[n] - lr * g / ((v[n] / unbias).sqrt() + eps) for n, g in slope.items()}
        params = {**params, **moved}
        if isinstance(taken, Tensor):
            params |= {ADAM_STEPS: taken + step + 1, **{ADAM_SQUARE + name: square for name, square in v.items()}}
        yield params


def moments(params: Params) -> Params:
    """Entries of θ by which `adam` goes on from task to task: the mean squared slope of each of these, and its age."""
    start = {ADAM_SQUARE + name: torch.zeros_like(p) for name, p in params.items()}
    return {**start, ADAM_STEPS: torch.zeros(())}


def last(iterator: Iterator[Params]) -> Params:
    """The final φ of a trajectory."""
    return deque(iterator, maxlen=1).pop()


def query_grad(
    algo: Algorithm, params: Params, episode: Episode, parallel: ParallelMap, steps: int
) -> tuple[Params, Metrics]:
    """∇_θ of the mean over tasks of L_query(φ), φ being what `adapt` arrives at within so many steps; and metrics, with
    those that φ tells itself."""

    def loss(params: Params, task: Episode) -> tuple[Tensor, Metrics]:
        fast = last(algo.adapt(params, task.support, steps))
        value, metrics = judge(algo.net.heads, algo.predict(fast, task.query.x), task.query.y)
        return value, {**metrics, **told(fast)}

    return parallel.mean_grad(loss, params, episode)


def displacement(
    algo: Algorithm, params: Params, episode: Episode, parallel: ParallelMap, steps: int
) -> tuple[Params, Metrics]:
    """θ − the mean over tasks of what `adapt` arrives at within so many steps, a slope without any derivative; with
    the mean of the tasks' moments, where θ has some; and metrics of the queries, by which nothing is trained."""

    def arrive(params: Params, task: Episode) -> tuple[Params, Metrics]:
        fast = last(algo.adapt(params, task.support, steps))
        _, metrics = judge(algo.net.heads, algo.predict(fast, task.query.x), task.query.y)
        return {name: fast[name] for name in params if name in moved or name.startswith(ADAM)}, metrics

    moved = learned(params)
    with torch.no_grad():
        mean, metrics = parallel.mean(arrive, params, episode)
        return {name: moved[name] - p if name in moved else p for name, p in mean.items()}, metrics
