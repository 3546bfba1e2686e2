"""What a prediction is judged by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.types import Heads, Metrics, Outputs, Targets


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
