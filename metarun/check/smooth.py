"""A small smooth copy of a problem: finite differences go astray at the kinks of ReLU and max-pooling."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.maths.norm import BatchNorm
from metarun.types import Params

SIDE = 8  # pixels that images are shrunk to
CHANNELS = 8


class Smooth(nn.Module):
    """Two layers of tanh, normalised by batch where the network that they stand for is; of images the mean over places.

    So features are short, and a step size that suits a common network is not too large for this one.
    """

    def __init__(self, shape: tuple[int, ...], batch_norm: bool, channels: int = CHANNELS, side: int = SIDE) -> None:
        super().__init__()
        self.images = len(shape) == 3
        self.side = min(side, *shape[1:]) if self.images else 1
        inputs = shape[0] if self.images else math.prod(shape)
        self.blocks = nn.Sequential(
            self._block(inputs, channels, 2, batch_norm), self._block(channels, channels, 1, batch_norm)
        )
        self.features = channels

    def _block(self, inputs: int, outputs: int, stride: int, batch_norm: bool) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1) if self.images else nn.Linear(inputs, outputs)
        norm = BatchNorm(outputs) if batch_norm else nn.Identity()
        return nn.Sequential(OrderedDict[str, nn.Module](layer=layer, norm=norm, tanh=nn.Tanh()))

    @property
    def stages(self) -> nn.Sequential:
        """What computes the feature maps."""
        return self.blocks

    def forward(self, x: Tensor) -> Tensor:
        if self.images:
            return self.blocks(F.adaptive_avg_pool2d(x, self.side)).mean((2, 3))
        return self.blocks(x.flatten(1))


@dataclass(frozen=True)
class Mean:
    """Stands for a balance. Its loss is the one that is logged; what another one descends changes with its weights."""

    needs: ClassVar[Literal["losses", "gram", "features", "slopes"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        there = (~losses.isnan()).to(losses.dtype)
        return there / there.sum(), {}
