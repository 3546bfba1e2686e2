"""The meta-gradient of several objectives at once, weighed by a balance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.maths.gradient import leaves_of, pulled_back
from metarun.types import Balance, Heads, Metrics, ParallelMap, Params, Score, UserError


class Objectives(NamedTuple):
    """Several heads' losses, computed in two parts: what all heads share, and what each makes of it."""

    names: Sequence[str]  # of the heads, in the order of a score
    features: Callable[[Params, Any], Tensor]  # (θ, task): what the heads read
    score: Callable[[Params, Tensor, Any], Score]  # (θ, features, task); features of each head by itself are [B, H, D]
    shared: Collection[str]  # the entries of θ that the features depend on
    alone: bool  # every task has inputs of its own and one head

    def whole(self, params: Params, task: Any) -> Score:
        """Both parts."""
        return self.score(params, self.features(params, task), task)


def balanced(
    balance: Balance, objectives: Objectives, params: Params, sample: Any, parallel: ParallelMap
) -> tuple[Params, Metrics]:
    """Σ_h w_h ∇L_h over the heads h, with weights w of the balance; and metrics.

    A balance of losses weighs every entry. Others weigh the shared entries by what their slopes are, or the slopes of
    the features; each other entry gets the plain mean. A head without a target in this step counts for nothing.
    """
    if balance.needs == "losses":
        return _by_losses(balance, objectives, params, sample, parallel)
    if not objectives.alone:
        return _by_shared_rows(balance, objectives, params, sample, parallel)
    losses, rows, metrics, slopes = parallel.slopes(objectives.whole, params, sample)
    plain = _plain(losses, rows)
    rest = {n: torch.tensordot(plain.to(s.dtype), s, 1) for n, s in slopes.items() if n not in objectives.shared}
    weighed, metrics = _mixed(balance, objectives, params, (losses, rows, metrics), slopes)
    return {**rest, **weighed}, metrics


def kept(balance: Balance, heads: Heads, shared: int) -> Params:
    """What a balance keeps for these heads, which have so many numbers in common; one that does not fit is refused."""
    if balance.needs == "features" and all(head.alone for head in heads.values()):
        raise UserError(
            f"balance: {type(balance).__name__} weighs heads by features that they share, and these tasks have inputs "
            "of their own. Take another, as balance=mgda, or data whose heads share their inputs."
        )
    return balance.init(len(heads), shared)


def _by_losses(
    balance: Balance, objectives: Objectives, params: Params, sample: Any, parallel: ParallelMap
) -> tuple[Params, Metrics]:
    leaves = leaves_of(params)
    losses, rows, metrics = parallel.losses(objectives.whole, {**params, **leaves}, sample)
    weights, entries = balance(_known(losses.detach(), rows), None, params)
    weights = _used(weights, rows)
    slope = torch.autograd.grad((weights * losses).sum(), list(leaves.values()), materialize_grads=True)
    metrics |= _weights(objectives, weights)
    return {**parallel.total(dict(zip(leaves, slope, strict=True))), **entries}, metrics


def _by_shared_rows(
    balance: Balance, objectives: Objectives, params: Params, sample: Any, parallel: ParallelMap
) -> tuple[Params, Metrics]:
    """Each head reads features of its own, so that one way back tells the slopes by the features of all. From there to
    the shared entries they go by themselves, or, where the features are what is weighed, as their weighted sum."""
    leaves = leaves_of(params)
    shared = {name: leaves[name] for name in objectives.shared}
    own = {name: p for name, p in leaves.items() if name not in shared}
    seen = parallel.stack(objectives.features, {**params, **leaves}, sample)  # [T, B, D]
    cut = seen.detach()[:, :, None].repeat(1, 1, len(objectives.names), 1).requires_grad_()
    losses, rows, metrics = parallel.losses(
        lambda params, pair: objectives.score(params, *pair), {**params, **own}, (cut, sample)
    )
    mean = (_plain(losses, rows) * losses).sum()
    of_copies, *slopes = torch.autograd.grad(mean, [cut, *own.values()], materialize_grads=True)
    of_features = of_copies.movedim(2, 0) * (rows > 0).sum()  # [H, T, B, D]
    found, judged = dict(zip(own, slopes, strict=True)), (losses.detach(), rows, metrics)
    if balance.needs == "features":
        flat = of_features.flatten(1)
        weights, entries, metrics = _asked(balance, objectives, params, judged, parallel.total(flat @ flat.T))
        back = torch.autograd.grad(seen, list(shared.values()), torch.tensordot(weights, of_features, 1))
        return {**parallel.total({**found, **dict(zip(shared, back, strict=True))}), **entries}, metrics
    found, slopes = parallel.total((found, pulled_back(seen, shared, of_features)))
    weighed, metrics = _mixed(balance, objectives, params, judged, slopes)
    return {**found, **weighed}, metrics


def _mixed(
    balance: Balance, objectives: Objectives, params: Params, judged: tuple[Tensor, Tensor, Metrics], slopes: Params
) -> tuple[Params, Metrics]:
    """The heads' slopes by the shared entries, by name [H, ...], as one; and metrics."""
    flat = torch.cat([slopes[name].flatten(1) for name in objectives.shared], 1)  # [H, P]
    gram = flat @ flat.T
    weights, entries, metrics = _asked(balance, objectives, params, judged, gram, flat)
    mixed = weights @ flat if weights.ndim == 1 else (weights * flat).sum(0)
    parts = mixed.split([params[name].numel() for name in objectives.shared])
    found = {name: part.view_as(params[name]) for name, part in zip(objectives.shared, parts, strict=True)}
    return {**found, **entries}, metrics


def _asked(
    balance: Balance,
    objectives: Objectives,
    params: Params,
    judged: tuple[Tensor, Tensor, Metrics],
    gram: Tensor,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Params, Metrics]:
    """The balance's weights and entries; and metrics, the cosines between heads among them (NaN: not both there)."""
    losses, rows, metrics = judged
    weights, entries = balance(_known(losses, rows), slopes if balance.needs == "slopes" else gram, params)
    weights = _used(weights, rows)
    lengths = gram.diagonal().sqrt().masked_fill(rows == 0, torch.nan)
    cosines = gram / (lengths * lengths[:, None]).clamp(min=torch.finfo(gram.dtype).tiny)
    return weights, entries, {**metrics, **_weights(objectives, weights), "cosine": cosines}


def _weights(objectives: Objectives, weights: Tensor) -> Metrics:
    """Each head's weight, or the mean of its weights."""
    each = (weights if weights.ndim == 1 else weights.mean(1)).unbind()
    return {f"{name}/weight": weight for name, weight in zip(objectives.names, each, strict=True)}


def _plain(losses: Tensor, rows: Tensor) -> Tensor:
    """The weights of the plain mean over the heads that have a row."""
    there = rows > 0
    return there.to(losses.dtype) / there.sum().clamp(min=1)


def _known(losses: Tensor, rows: Tensor) -> Tensor:
    """The losses as a balance sees them: NaN where no row stands behind one."""
    return losses.masked_fill(rows == 0, torch.nan)


def _used(weights: Tensor, rows: Tensor) -> Tensor:
    """The weights, 0 for heads without a row, whatever the balance gave them."""
    absent = rows == 0
    return weights.masked_fill(absent if weights.ndim == 1 else absent[:, None], 0.0)
