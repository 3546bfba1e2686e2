"""Classes by the means of their features."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1e30  # a logit that beats none, and finite, so that the loss is a number where every row's class is absent


def membership(y: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Classes [B] -> [B, N]: 1 where a row is of a class, else 0; -100 is of none."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(dtype)


def prototypes(features: Tensor, y: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Features [B, D] and classes [B] -> the mean of each class [N, D], zero where it has no row, and its rows [N]."""
    member = membership(y, ways, features.dtype)
    rows = member.sum(0)
    return member.T @ features / rows.clamp(min=1)[:, None], rows


def squared_distances(x: Tensor, c: Tensor) -> Tensor:
    """[B, D] and [N, D] -> ‖x − c‖² [B, N], by one product of matrices."""
    return x.square().sum(1, keepdim=True) - 2 * x @ c.T + c.square().sum(1)


def present(logits: Tensor, rows: Tensor) -> Tensor:
    """Logits [..., N] by which no class without a support row is chosen."""
    return logits.masked_fill(rows == 0, NEVER)
