"""The mapping of one task's function over many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.maths.gradient import grad
from metarun.types import Metrics, Params


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
