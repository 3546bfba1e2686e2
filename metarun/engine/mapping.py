"""One task's function, applied to the tasks of a step: mapped over this rank's share, summed over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.engine.ranks import ALONE, Team
from metarun.maths.gradient import grad, laid_out
from metarun.maths.losses import mean
from metarun.types import Metrics, Params, Score


@dataclass(frozen=True)
class Parallel:
    """Applies one task's function to T tasks: `vmap` over `chunk` tasks at a time, or a plain `loop`.

    Memory is bounded by the chunk, but for `losses`, whose graph is that of all tasks; the result does not depend on it
    (up to rounding).
    """

    mode: str
    chunk: int
    team: Team = field(default=ALONE, compare=False)

    def __str__(self) -> str:
        return "loop" if self.mode == "loop" else f"vmap chunk {self.chunk}"

    def _pieces(self, tasks: Any) -> Iterator[Any]:
        size = 1 if self.mode == "loop" else self.chunk
        for start in range(0, len(tree_leaves(tasks)[0]), size):
            yield tree_map(lambda t, a=start: t[a : a + size], tasks)

    def stack(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """fn(params, task) for each of this rank's tasks, results stacked: [T, ...]."""
        if self.mode == "loop":
            total = len(tree_leaves(tasks)[0])
            each = [fn(params, _task(tasks, i)) for i in range(total)]
            return tree_map(lambda *leaves: torch.stack(leaves), *each)
        mapped = torch.vmap(fn, in_dims=(None, 0), randomness="different")
        parts = [mapped(params, piece) for piece in self._pieces(tasks)]
        return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)

    def _sum(self, fn: Callable[..., Any], params: Params, piece: Any) -> Any:
        """The sum of fn(params, task) over the tasks of a piece; a loop's pieces have one, which nothing need copy."""
        if self.mode == "loop":
            return fn(params, _task(piece, 0))
        return tree_map(lambda t: t.sum(0), self.stack(fn, params, piece))

    def total(self, tree: Any) -> Any:
        """The sum over ranks of each tensor."""
        return self.team.total(tree)

    def mean(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """Mean over all ranks' tasks of fn(params, task)."""
        count = len(tree_leaves(tasks)[0])
        sums = None
        for piece in self._pieces(tasks):
            part = self._sum(fn, params, piece)
            sums = part if sums is None else tree_map(torch.add, sums, part)
        return self.team.mean(tree_map(lambda t: t / count, sums), _rows(tasks))

    def mean_grad(
        self, loss: Callable[[Params, Any], tuple[Tensor, Metrics]], params: Params, tasks: Any
    ) -> tuple[Params, Metrics]:
        """∇ of the mean over tasks of loss(params, task), and the mean of what loss returns beside it, over the tasks
        that have it: it is NaN in others, but for the loss, which no task is without."""
        count = len(tree_leaves(tasks)[0])
        sums: tuple[Params, Metrics] | None = None
        for piece in self._pieces(tasks):

            def share(leaves: Params, piece: Any = piece) -> tuple[Tensor, Metrics]:
                losses, metrics = self.stack(loss, leaves, piece)
                found = {name: _known(m, name == "loss") / count for name, m in metrics.items()}
                return losses.sum() / count, found

            part = grad(share, params)
            sums = part if sums is None else tree_map(torch.add, sums, part)
        assert sums is not None
        slope, metrics = self.team.mean(sums, _rows(tasks))
        return slope, {name: total / tasks for name, (total, tasks) in metrics.items()}

    def losses(
        self, score: Callable[[Params, Any], Score], params: Params, tasks: Any
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Each head's mean loss over the rows of all ranks [H], with the graph of this rank's; rows [H]; metrics."""
        return self._over_rows(self.stack(score, params, tasks))

    def slopes(
        self, score: Callable[[Params, Any], Score], params: Params, tasks: Any
    ) -> tuple[Tensor, Tensor, Metrics, Params]:
        """`losses`, and the slope of each, by name [H, ...], where each task has one head of its own."""

        def slope(params: Params, task: Any) -> tuple[Params, Score]:
            def summed(params: Params) -> tuple[Tensor, Score]:
                found = score(params, task)
                total = torch.stack([found.losses[name] * rows for name, rows in found.rows.items()]).sum()
                return total, tree_map(torch.Tensor.detach, found)

            return grad(summed, params)

        of_tasks, found = self.stack(slope, params, tasks)
        losses, rows, metrics = self._over_rows(found)
        owner = torch.stack([(r > 0).to(r.dtype) for r in found.rows.values()]) / rows.clamp(min=1)[:, None]  # [H, T]
        of_heads = {name: torch.tensordot(owner.to(g.dtype), g, 1) for name, g in of_tasks.items()}
        return losses, rows, metrics, self.total(of_heads)

    def _over_rows(self, found: Score) -> tuple[Tensor, Tensor, Metrics]:
        """Scores of this rank's tasks [T] -> losses [H] and metrics over the rows of all tasks of all ranks."""
        rows = torch.stack([r.sum() for r in found.rows.values()])
        sums = torch.stack([(found.losses[name] * r).sum() for name, r in found.rows.items()])
        metrics = {n: {k: (m * found.rows[n]).sum() for k, m in own.items()} for n, own in found.metrics.items()}
        if self.team.size > 1:
            rows, everyone, metrics = self.total((rows, sums.detach(), metrics))
            sums = everyone + sums - sums.detach()  # the value of all ranks, the graph of this one
        losses = sums / rows.clamp(min=1)
        each = dict(zip(found.losses, zip(losses, rows, strict=True), strict=True))
        whole = Score(
            {name: one for name, (one, _) in each.items()},
            {name: known for name, (_, known) in each.items()},
            {name: {k: m / each[name][1].clamp(min=1) for k, m in own.items()} for name, own in metrics.items()},
        )
        return losses, rows, mean(whole)[1]


def _known(values: Tensor, all_are: bool) -> Tensor:
    """Over tasks, the sum of the values that are known, and how many those are: [2, ...]."""
    known = torch.ones_like(values) if all_are else (~values.isnan()).to(values.dtype)
    return torch.stack([torch.where(known > 0, values, 0).sum(0), known.sum(0)])


def _task(tasks: Any, i: int) -> Any:
    """One task of several."""
    return tree_map(lambda t: laid_out(t[i], channels_last=True), tasks)


def _rows(tasks: Any) -> int:
    """What a rank's share weighs: its tasks, or its rows where all ranks share the rows of one."""
    return tree_leaves(tasks)[0].shape[:2].numel()
