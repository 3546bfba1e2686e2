"""Normalisation without hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.maths.batchnorm import batch_norm


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics it is handed, or, where it is handed none, by the batch's own.

    `mean` and `var` are never stored: they arrive as entries of a parameter dict (see `Net`).
    """

    mean: Tensor | None
    var: Tensor | None

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", None)
        self.register_buffer("var", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None or self.var is None:
            return batch_norm(x, self.weight, self.bias, self.eps)
        # F.batch_norm takes given statistics for constants; these depend on the parameters.
        each = (-1, *[1] * (x.ndim - 2))
        scale = self.weight / (self.var + self.eps).sqrt()
        shift = self.bias - scale * self.mean
        return x * scale.view(each) + shift.view(each)


class FixedNorm(nn.Module):
    """What batch norm by fixed statistics amounts to: y = weight x + bias, for every channel of an image."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


NORMS = (BatchNorm, FixedNorm, nn.GroupNorm, nn.LayerNorm)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """`batch`, `group` (groups of 8 channels where they divide, else one), `layer` (one group) or `none`."""
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels)
    if kind == "none":
        return nn.Identity()
    raise UserError(f"backbone.norm={kind} is unknown: take batch, group, layer or none.")
