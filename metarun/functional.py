"""Pure tree maths: inner-loop steps, and the mapping of one task's function over many tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.types import Heads, Metrics, Outputs, Params, Targets


def judge(heads: Heads, outputs: Outputs, y: Targets) -> tuple[Tensor, Metrics]:
    """The loss to descend (mean over heads of cross-entropy or squared error), and the metrics to report.

    A head that no row has a target for counts for nothing.
    """
    losses, present, accuracy = [], [], []
    for name, head in heads.items():
        if head.kind == "value":
            losses.append(F.mse_loss(outputs[name], y[name]))
            present.append(torch.ones_like(losses[-1]))
            continue
        known = (y[name] >= 0).sum()
        rows = known.clamp(min=1)
        losses.append(F.cross_entropy(outputs[name], y[name], reduction="sum") / rows)
        present.append((known > 0).to(losses[-1].dtype))
        accuracy.append((outputs[name].detach().argmax(-1) == y[name]).sum() / rows)
    share = torch.stack(present) / torch.stack(present).sum()
    loss = (torch.stack(losses) * share).sum()
    kind = {"accuracy": (torch.stack(accuracy) * share).sum()} if accuracy else {"mse": loss.detach()}
    return loss, {"loss": loss.detach(), **kind}


def grad(fn: Callable[[Params], tuple[Tensor, Metrics]], params: Params) -> tuple[Params, Metrics]:
    """∇ of the first of what fn(params) returns, and the second: metrics."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss, metrics = fn(leaves)
    slope = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slope, strict=True)), metrics


def gradient(loss: Callable[..., Tensor], params: Params, adapted: Collection[str], *args: Any) -> Params:
    """∇ loss(params, *args) with respect to the entries named in `adapted`."""
    moving = {name: params[name] for name in adapted}
    if mapped():
        fixed = {name: p for name, p in params.items() if name not in adapted}
        return torch.func.grad(lambda p: loss({**fixed, **p}, *args))(moving)
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        moving = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in moving.items()}
        value = loss({**params, **moving}, *args)
        slope = torch.autograd.grad(value, list(moving.values()), create_graph=outer, materialize_grads=True)
    return dict(zip(moving, slope, strict=True))


def mapped() -> bool:
    """Whether this is computed inside vmap: there torch.func alone differentiates, elsewhere autograd is faster."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def sgd(
    loss: Callable[[Params, int], Tensor],
    params: Params,
    lr: float,
    steps: int,
    adapted: Collection[str],
    first_order: bool,
) -> Iterator[Params]:
    """φ₀ = θ, φₖ₊₁ = φₖ − lr ∇loss(φₖ, k): yields φ₀ … φ_steps.

    With `first_order` the gradient is a constant: an outer derivative sees ∂φₖ₊₁/∂φₖ = I.
    """
    yield params
    for step in range(steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            slope = gradient(loss, params, adapted, step)
        params = {**params, **{name: params[name] - lr * g for name, g in slope.items()}}
        yield params


def adam(
    loss: Callable[[Params, int], Tensor],
    params: Params,
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
            slope = gradient(loss, params, adapted, step)
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
