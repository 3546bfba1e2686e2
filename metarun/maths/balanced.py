"""The meta-gradient of several objectives at once, weighed by a balance."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from metarun.maths.gradient import leaves_of
from metarun.types import Balance, Metrics, ParallelMap, Params, Score


def balanced(
    balance: Balance,
    score: Callable[[Params, Any], Score],
    params: Params,
    sample: Any,
    parallel: ParallelMap,
    shared: Collection[str],
    disjoint: bool,
) -> tuple[Params, Metrics]:
    """Σ_h w_h ∇L_h over the heads h of score(params, task), with weights w of the balance; and metrics.

    A balance of losses weighs every entry. One of slopes weighs the `shared` entries by what their slopes are; each
    other entry gets the plain mean. A head without a target in this step counts for nothing.
    `disjoint`: every task has one head of its own.
    """
    if balance.needs == "losses":
        leaves = leaves_of(params)
        losses, rows, metrics = parallel.losses(score, {**params, **leaves}, sample)
        weights, entries = balance(_known(losses.detach(), rows), None, params)
        total = (_used(weights, rows) * losses).sum()
        slope = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return {**parallel.total(dict(zip(leaves, slope, strict=True))), **entries}, metrics
    losses, rows, metrics, slopes = parallel.slopes(score, params, sample, disjoint)
    flat = torch.cat([slopes[name].flatten(1) for name in shared], 1)  # [H, P]
    weights, entries = balance(_known(losses, rows), flat if balance.needs == "slopes" else flat @ flat.T, params)
    weights = _used(weights, rows)
    mixed = (weights[:, None] if weights.ndim == 1 else weights) * flat
    parts = mixed.sum(0).split([params[name].numel() for name in shared])
    grads = {name: part.view_as(params[name]) for name, part in zip(shared, parts, strict=True)}
    there = (rows > 0).to(losses.dtype)
    plain = there / there.sum().clamp(min=1)
    rest = {n: torch.tensordot(plain.to(slopes[n].dtype), slopes[n], 1) for n in slopes if n not in grads}
    return {**rest, **grads, **entries}, metrics


def _known(losses: Tensor, rows: Tensor) -> Tensor:
    """The losses as a balance sees them: NaN where no row stands behind one."""
    return losses.masked_fill(rows == 0, torch.nan)


def _used(weights: Tensor, rows: Tensor) -> Tensor:
    """The weights, 0 for heads without a row, whatever the balance gave them."""
    absent = rows == 0
    return weights.masked_fill(absent if weights.ndim == 1 else absent[:, None], 0.0)
