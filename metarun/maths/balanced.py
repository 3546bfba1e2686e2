"""The meta-gradient of several objectives at once, weighed by a balance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.maths.gradient import gradient_and_rest, leaves_of, pulled_back
from metarun.maths.losses import by_head
from metarun.maths.net import Net
from metarun.types import Balance, Batch, Metrics, ParallelMap, Params, Score, UserError

PULLING: Callable[..., Any] = torch.func.vjp  # whose own type does not know of has_aux


class Objectives(NamedTuple):
    """Several heads' losses, computed in two parts: what all heads share, and what each makes of it."""

    names: Sequence[str]  # of the heads, in the order of a score
    features: Callable[[Params, Any], Tensor]  # (θ, task): what the heads read, [B, D], or each its own, [B, H, D]
    score: Callable[[Params, Tensor, Any], Score]  # (θ, features, task); features of each head by itself are [B, H, D]
    shared: Collection[str]  # the entries of θ that several heads' features depend on
    alone: bool  # every task has inputs of its own and one head

    def whole(self, params: Params, task: Any) -> Score:
        """Both parts."""
        return self.score(params, self.features(params, task), task)


def of_heads(net: Net, params: Params) -> Objectives:
    """A network's heads on what its trunk gives; a task is a batch."""

    def features(params: Params, task: Batch) -> Tensor:
        return net.seen(params, task.x)

    def score(params: Params, seen: Tensor, task: Batch) -> Score:
        return by_head(net.heads, net.output(params, seen), task.y)

    alone = all(head.alone for head in net.heads.values())
    return Objectives([*net.heads], features, score, net.shared(params), alone)


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
    mixed, entries, metrics = _mixed(balance, objectives, params, (losses, rows, metrics), slopes)
    return {**rest, **mixed, **entries}, metrics


def weighed(
    balance: Balance, objectives: Objectives, params: Params, task: Any, adapted: Collection[str]
) -> tuple[Params, Params]:
    """The slope of one task's heads that `balanced` takes of all tasks', by the entries named in `adapted`; and next
    values and slopes of the balance's own entries, which are in `params`. It may be beneath vmap, where no task knows
    of another's weights.

    It can be differentiated again, and then the weights are constants: they are computed from losses and slopes as
    numbers, so that a derivative by θ sees that the slopes depend on it, and not that the weights do.
    """
    ways = {"losses": _weighed_losses, "features": _weighed_features}
    return ways.get(balance.needs, _weighed_slopes)(balance, objectives, params, task, adapted)


def _weighed_losses(
    balance: Balance, objectives: Objectives, params: Params, task: Any, adapted: Collection[str]
) -> tuple[Params, Params]:
    """One way back, with weights that are found on the way there."""

    def total(params: Params, task: Any) -> tuple[Tensor, Params]:
        losses, rows = _stacked(objectives.whole(params, task))
        with torch.no_grad():
            weights, entries = balance(_known(losses.detach(), rows), None, params)
        return (_used(weights, rows) * losses).sum(), entries

    return gradient_and_rest(total, params, adapted, task)


def _weighed_slopes(
    balance: Balance, objectives: Objectives, params: Params, task: Any, adapted: Collection[str]
) -> tuple[Params, Params]:
    """A way back for each head."""

    def judged(moving: Params) -> tuple[Tensor, Tensor]:
        return _stacked(objectives.whole({**params, **moving}, task))

    losses, back, rows = PULLING(judged, {name: params[name] for name in adapted}, has_aux=True)
    each = [back(one)[0] for one in torch.eye(len(losses), dtype=losses.dtype, device=losses.device)]
    slopes = {name: torch.stack([of_head[name] for of_head in each]) for name in adapted}
    plain = _plain(losses, rows)
    own = {name: torch.tensordot(plain, s, 1) for name, s in slopes.items() if name not in objectives.shared}
    mixed, entries, _ = _mixed(balance, objectives, params, (losses.detach(), rows, {}), slopes)
    return {**own, **mixed}, entries


def _weighed_features(
    balance: Balance, objectives: Objectives, params: Params, task: Any, adapted: Collection[str]
) -> tuple[Params, Params]:
    """Each head reads features of its own, so that one way back tells the slopes by the features of all; and another
    one takes their weighted sum to the shared entries."""
    shared = {name: params[name] for name in objectives.shared}
    own = {name: params[name] for name in adapted if name not in shared}

    def judged(own: Params, copies: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        losses, rows = _stacked(objectives.score({**params, **own}, copies, task))
        return (_plain(losses, rows) * losses).sum(), (losses.detach(), rows)

    seen, back = PULLING(lambda shared: objectives.features({**params, **shared}, task), shared)  # [B, D]
    copies = seen[:, None].expand(-1, len(objectives.names), -1)
    mean, to_own, (losses, rows) = PULLING(judged, own, copies, has_aux=True)
    of_own, of_copies = to_own(torch.ones_like(mean))
    of_features = of_copies.movedim(1, 0) * (rows > 0).sum()  # [H, B, D]
    flat = of_features.detach().flatten(1)
    weights, entries, _ = _asked(balance, objectives, params, (losses, rows, {}), flat @ flat.T)
    return {**of_own, **back(torch.tensordot(weights, of_features, 1))[0]}, entries


def kept(balance: Balance, net: Net, params: Params, shared: Collection[str]) -> Params:
    """What a balance keeps for the trained heads of a network, which have the `shared` entries of θ in common; one that
    does not fit is refused."""
    heads = net.trained
    if balance.needs == "features" and net.by_head:
        raise UserError(
            f"balance: {type(balance).__name__} weighs heads by features that they share, and sharing= gives each head "
            "features of its own. Take another, as balance=mgda, or leave sharing= out."
        )
    if balance.needs != "losses" and not shared:
        raise UserError(
            f"balance: {type(balance).__name__} weighs gradients of what heads share, and these share no entry. "
            "Take a balance of losses, as balance=equal, or another sharing=."
        )
    if balance.needs == "features" and all(head.alone for head in heads.values()):
        raise UserError(
            f"balance: {type(balance).__name__} weighs heads by features that they share, and these tasks have inputs "
            "of their own. Take another, as balance=mgda, or data whose heads share their inputs."
        )
    entries = balance.init(len(heads), sum(params[name].numel() for name in shared))
    if len(heads) == 1 and (entries or balance.needs != "losses"):
        raise UserError(
            f"balance: {type(balance).__name__} weighs heads against each other, and these tasks have one, "
            f"{next(iter(heads))}. Leave balance= out, or take data of several heads."
        )
    return entries


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
    the shared entries they go by themselves, or, where the features are what is weighed, as their weighted sum. To an
    entry of the trunk that one head alone uses all of them go at once: the others' are zero there."""
    leaves = leaves_of(params)
    shared = {name: leaves[name] for name in objectives.shared}
    own = {name: p for name, p in leaves.items() if name not in shared}
    seen = parallel.stack(objectives.features, {**params, **leaves}, sample)  # [T, B, D] or [T, B, H, D]
    by_head, heads = seen.ndim == 4, len(objectives.names)
    copies = seen.detach() if by_head else seen.detach()[:, :, None].repeat(1, 1, heads, 1)
    cut = copies.requires_grad_()  # [T, B, H, D]
    losses, rows, metrics = parallel.losses(
        lambda params, pair: objectives.score(params, *pair), {**params, **own}, (cut, sample)
    )
    mean = (_plain(losses, rows) * losses).sum()
    of_copies, *slopes = torch.autograd.grad(mean, [cut, *own.values()], materialize_grads=True)
    of_features = of_copies.movedim(2, 0) * (rows > 0).sum()  # [H, T, B, D]
    if by_head:
        of_trunk = torch.autograd.grad(seen, [*own.values()], of_copies, retain_graph=True, materialize_grads=True)
        slopes = [one + other for one, other in zip(slopes, of_trunk, strict=True)]
        each = torch.eye(heads, dtype=seen.dtype, device=seen.device)[:, None, None, :, None]
        of_features = each * of_features[:, :, :, None]  # [H, T, B, H, D]
    found, judged = dict(zip(own, slopes, strict=True)), (losses.detach(), rows, metrics)
    if balance.needs == "features":
        flat = of_features.flatten(1)
        weights, entries, metrics = _asked(balance, objectives, params, judged, parallel.total(flat @ flat.T))
        back = torch.autograd.grad(seen, list(shared.values()), torch.tensordot(weights, of_features, 1))
        return {**parallel.total({**found, **dict(zip(shared, back, strict=True))}), **entries}, metrics
    found, slopes = parallel.total((found, pulled_back(seen, shared, of_features)))
    mixed, entries, metrics = _mixed(balance, objectives, params, judged, slopes)
    return {**found, **mixed, **entries}, metrics


def _mixed(
    balance: Balance, objectives: Objectives, params: Params, judged: tuple[Tensor, Tensor, Metrics], slopes: Params
) -> tuple[Params, Params, Metrics]:
    """The heads' slopes by the shared entries, by name [H, ...], as one; the balance's entries; and metrics."""
    flat = torch.cat([slopes[name].flatten(1) for name in objectives.shared], 1)  # [H, P]
    shown = flat.detach()
    weights, entries, metrics = _asked(balance, objectives, params, judged, shown @ shown.T, shown)
    mixed = weights @ flat if weights.ndim == 1 else (weights * flat).sum(0)
    parts = mixed.split([params[name].numel() for name in objectives.shared])
    found = {name: part.view_as(params[name]) for name, part in zip(objectives.shared, parts, strict=True)}
    return found, entries, metrics


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


def _stacked(score: Score) -> tuple[Tensor, Tensor]:
    """Losses [H] and numbers of rows [H]."""
    return torch.stack([*score.losses.values()]), torch.stack([*score.rows.values()])


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
