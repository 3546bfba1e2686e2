"""Pure tree maths: inner-loop steps, and the mapping of one task's function over many tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.gradient import gradient
from metarun.remat import recomputed
from metarun.types import Batch, Heads, Metrics, Outputs, Params, Targets

Loss = Callable[[Params, Batch, int], Tensor]  # of the parameters, the support set and the number of the step


def judge(heads: Heads, outputs: Outputs, y: Targets) -> tuple[Tensor, Metrics]:
    """The loss to descend (mean over heads of cross-entropy or squared error), and the metrics to report.

    A head that no row has a target for counts for nothing.
    """
    losses: list[tuple[Tensor, Tensor]] = []  # with their weights
    accuracy: list[tuple[Tensor, Tensor]] = []
    for name, head in heads.items():
        if head.kind == "value":
            error = (outputs[name] - y[name]).square().mean()  # vmap takes F.mse_loss apart in Python
            losses.append((error, torch.ones_like(error)))
            continue
        known = (y[name] >= 0).sum()
        rows = known.clamp(min=1)
        entropy = F.cross_entropy(outputs[name], y[name], reduction="sum") / rows
        right = (outputs[name].detach().argmax(-1) == y[name]).sum(dtype=entropy.dtype)
        present = (known > 0).to(entropy.dtype)
        losses.append((entropy, present))
        accuracy.append((right / rows, present))
    loss = _mean(losses)
    kind = {"accuracy": _mean(accuracy)} if accuracy else {"mse": loss.detach()}
    return loss, {"loss": loss.detach(), **kind}


def _mean(weighted: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of values with their weights; of one value, that value."""
    if len(weighted) == 1:
        return weighted[0][0]
    values, weights = map(torch.stack, zip(*weighted, strict=True))
    return (values * weights).sum() / weights.sum()


def grad(fn: Callable[[Params], tuple[Tensor, Metrics]], params: Params) -> tuple[Params, Metrics]:
    """∇ of the first of what fn(params) returns, and the second: metrics."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss, metrics = fn(leaves)
    slope = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slope, strict=True)), metrics


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


@dataclass(frozen=True)
class Parallel:
    """Maps one task's function over T tasks: `vmap` over `chunk` tasks at a time, or a plain `loop`.

    Memory is bounded by the chunk; the result does not depend on it (up to rounding).
    """

    mode: str
    chunk: int

    def __str__(self) -> str:
        return "loop" if self.mode == "loop" else f"vmap chunk {self.chunk}"

    def _pieces(self, tasks: Any) -> Iterator[Any]:
        for start in range(0, len(tree_leaves(tasks)[0]), self.chunk):
            yield tree_map(lambda t, a=start: t[a : a + self.chunk], tasks)

    def stack(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """fn(params, task) for every task, results stacked: [T, ...]."""
        if self.mode == "loop":
            total = len(tree_leaves(tasks)[0])
            each = [fn(params, tree_map(lambda t, i=i: t[i], tasks)) for i in range(total)]
            return tree_map(lambda *leaves: torch.stack(leaves), *each)
        mapped = torch.vmap(fn, in_dims=(None, 0), randomness="different")
        parts = [mapped(params, piece) for piece in self._pieces(tasks)]
        return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)

    def mean(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """Mean over tasks of fn(params, task)."""
        total = len(tree_leaves(tasks)[0])
        sums = None
        for piece in self._pieces(tasks):
            part = tree_map(lambda t: t.sum(0), self.stack(fn, params, piece))
            sums = part if sums is None else tree_map(torch.add, sums, part)
        return tree_map(lambda t: t / total, sums)

    def mean_grad(
        self, loss: Callable[[Params, Any], tuple[Tensor, Metrics]], params: Params, tasks: Any
    ) -> tuple[Params, Metrics]:
        """∇ of the mean over tasks of loss(params, task), and the mean of what loss returns beside it."""
        total = len(tree_leaves(tasks)[0])
        sums: tuple[Params, Metrics] | None = None
        for piece in self._pieces(tasks):

            def share(leaves: Params, piece: Any = piece) -> tuple[Tensor, Metrics]:
                losses, metrics = self.stack(loss, leaves, piece)
                return losses.sum() / total, {name: m.sum(0) / total for name, m in metrics.items()}

            part = grad(share, params)
            sums = part if sums is None else tree_map(torch.add, sums, part)
        assert sums is not None
        return sums
