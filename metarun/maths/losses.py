"""What predictions are judged by: a loss and metrics for each head, and their mean over heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.types import Head, Heads, Metrics, Outputs, Score, Targets


def loss(heads: Heads, outputs: Outputs, y: Targets) -> Tensor:
    """What an inner step descends: the mean over heads of cross-entropy or squared error."""
    values, rows = zip(*(_loss(head, outputs[name], y[name]) for name, head in heads.items()), strict=True)
    return _mean(values, rows)


def judge(heads: Heads, outputs: Outputs, y: Targets) -> tuple[Tensor, Metrics]:
    """The same loss, and beside it the metrics to report, each a mean over the heads that have it."""
    return mean(by_head(heads, outputs, y))


def by_head(heads: Heads, outputs: Outputs, y: Targets) -> Score:
    """Loss, number of rows with a target, and metrics of each head."""
    losses, rows, metrics = {}, {}, {}
    for name, head in heads.items():
        losses[name], known = _loss(head, outputs[name], y[name])
        metrics[name] = _metrics(head, outputs[name], y[name], losses[name], known)
        rows[name] = losses[name].new_full((), len(y[name])) if known is None else known.to(losses[name].dtype)
    return Score(losses, rows, metrics)


def mean(score: Score) -> tuple[Tensor, Metrics]:
    """Of a score by head: the loss, and metrics by name. A head that no row has a target for counts for nothing, and a
    metric of such heads alone is NaN."""

    def over(values: dict[str, Tensor]) -> Tensor:
        return _mean(list(values.values()), [score.rows[name] for name in values])

    total = over(score.losses)
    kinds = dict.fromkeys(kind for found in score.metrics.values() for kind in found)
    means = {}
    for kind in kinds:
        values = {n: found[kind] for n, found in score.metrics.items() if kind in found}
        known = torch.stack([score.rows[name] for name in values]).sum()
        means[kind] = torch.where(known > 0, over(values), torch.nan)
    return total, {"loss": total.detach(), **means}


def flat(score: Score) -> Metrics:
    """The mean metrics, and where there are several heads also each head's own, as `head/metric`."""
    metrics = mean(score)[1]
    if len(score.losses) > 1:
        for name, own in score.metrics.items():
            metrics |= {f"{name}/loss": score.losses[name].detach()} | {f"{name}/{kind}": m for kind, m in own.items()}
    return metrics


def labelled(head: Head, y: Tensor) -> Tensor:
    """Which rows have a target: [B]."""
    return ~y.isnan().any(-1) if head.kind == "value" else y >= 0


def _loss(head: Head, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean loss over the rows with a target and their number; None where that is every row."""
    if head.kind == "value":
        error = output - y
        if not head.gaps:
            return error.square().mean(), None  # vmap takes F.mse_loss apart in Python
        known = labelled(head, y)
        error = error.masked_fill(~known[..., None], 0.0)
        return error.square().mean(-1).sum() / known.sum().clamp(min=1), known.sum()
    if not head.gaps:
        return F.cross_entropy(output, y), None
    known = labelled(head, y)
    return F.cross_entropy(output, y, reduction="sum") / known.sum().clamp(min=1), known.sum()


def _metrics(head: Head, output: Tensor, y: Tensor, loss: Tensor, rows: Tensor | None) -> Metrics:
    if head.kind == "value":
        return {"mse": loss.detach()}
    right = output.detach().argmax(-1) == y
    if rows is None:
        return {"accuracy": right.to(loss.dtype).mean()}
    return {"accuracy": right.sum(dtype=loss.dtype) / rows.clamp(min=1)}


def _mean(values: Sequence[Tensor], rows: Sequence[Tensor | None]) -> Tensor:
    """The mean of those values that some row stands behind; None: all rows do."""
    if len(values) == 1:
        return values[0]
    stacked = torch.stack([*values])
    if all(known is None for known in rows):
        return stacked.mean()
    weights = torch.stack(
        [v.new_ones(()) if n is None else (n > 0).to(v.dtype) for v, n in zip(values, rows, strict=True)]
    )
    return (stacked * weights).sum() / weights.sum()
