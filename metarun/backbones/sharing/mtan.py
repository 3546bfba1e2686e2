"""Multi-task attention: one trunk, of whose stages each head lets through what it needs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.maths.norm import norm_layer
from metarun.maths.staged import apart, shapes


class MTAN(nn.Module):
    """a_h ← sigmoid(mask_h([p, carry(a_h)])) p  for each stage, whose output is p, and a_h what the head let through of
    the stage before; the head reads the rest of the trunk on the last a_h.

    mask_h is two 1x1 convolutions (of vectors, linear layers) with norm, and ReLU between them. carry, one for all
    heads, is a 3x3 convolution with norm and ReLU, max-pooled to the size of p. In the paper the mask also sees what is
    inside a stage, and norms are batch norm: here layer norm, so that no mask depends on the other rows.

    Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention. CVPR 2019, arXiv 1803.10704.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        trunk = make_trunk()
        self.features = int(trunk.features)  # type: ignore[arg-type]
        stages, self.rest = apart(trunk)
        self.stages = nn.ModuleList(stages)
        made = shapes(stages, shape)
        vectors = [len(size) == 1 for size in made]
        channels = [size[0] for size in made]
        wiring = zip(pairwise(channels), vectors[1:], strict=True)
        self.carry = nn.ModuleList(_layer(a, b, 1 if flat else 3, flat) for (a, b), flat in wiring)
        inputs = [channels[0], *(2 * width for width in channels[1:])]
        self.own = nn.ModuleList(
            nn.ModuleList(_mask(*sizes) for sizes in zip(inputs, channels, vectors, strict=True)) for _ in range(heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        let: list[Tensor] = []  # through by each head
        for level, stage in enumerate(self.stages):
            x = stage(x)
            seen = [x] * len(self.own)
            if level:
                carried = self.carry[level - 1](torch.cat(let))
                if x.ndim == 4:
                    carried = F.adaptive_max_pool2d(carried, x.shape[2:])
                seen = [torch.cat([x, own], 1) for own in carried.chunk(len(self.own))]
            let = [masks[level](own).sigmoid() * x for masks, own in zip(self.own, seen, strict=True)]  # type: ignore[index]
        return self.rest(torch.stack(let, 1).flatten(0, 1)).unflatten(0, (len(x), len(self.own)))


def _mask(inputs: int, channels: int, vectors: bool) -> nn.Sequential:
    last = nn.Linear(channels, channels) if vectors else nn.Conv2d(channels, channels, 1)
    return nn.Sequential(_layer(inputs, channels, 1, vectors), last, norm_layer("layer", channels))


def _layer(inputs: int, outputs: int, kernel: int, vectors: bool) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs) if vectors else nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(linear, norm_layer("layer", outputs), nn.ReLU())
