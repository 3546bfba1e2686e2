"""ResNet-12, the large trunk of few-shot learning, and its DropBlock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.maths.norm import norm_layer
from metarun.types import Count, Rate, Share, UserError


class ResNet12(nn.Module):
    """Residual stages of three 3x3 convolutions, leaky ReLU of slope `leak`, max-pooled by 2; spatial mean.

    Every stage drops with rate `dropblock`: the last two squares of `dropblock_size`, those before single
    values. The rate is constant; the paper's code raises it from 0 over its first 40,000 steps.

    Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019,
    arXiv 1904.03758.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: Sequence[Count],
        norm: str,
        leak: Rate,
        dropblock: Share,
        dropblock_size: Count,
    ) -> None:
        super().__init__()
        _check(shape, len(channels))
        inputs = [shape[0], *channels]
        sizes = [1] * (len(channels) - 2) + [dropblock_size] * 2
        drops = [DropBlock(dropblock, size) for size in sizes[-len(channels) :]]
        self.stages = nn.Sequential(
            *(Stage(a, b, norm, leak, d) for a, b, d in zip(inputs[:-1], channels, drops, strict=True))
        )
        self.features = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x).mean((2, 3))


class Stage(nn.Module):
    """y = drop(pool(leaky(body(x) + shortcut(x))))."""

    def __init__(self, inputs: int, outputs: int, norm: str, leak: float, drop: nn.Module) -> None:
        super().__init__()
        body = OrderedDict[str, nn.Module]()
        for i in range(3):
            body[f"conv{i}"] = nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False)
            body[f"norm{i}"] = norm_layer(norm, outputs)
            body[f"relu{i}"] = nn.LeakyReLU(leak)
        del body["relu2"]
        shortcut = {"conv": nn.Conv2d(inputs, outputs, 1, bias=False), "norm": norm_layer(norm, outputs)}
        self.body = nn.Sequential(body)
        self.shortcut = nn.Sequential(OrderedDict(shortcut))
        self.leak = leak
        self.drop = drop
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.body(x) + self.shortcut(x), self.leak)
        return self.drop(F.max_pool2d(x, 2))


class DropBlock(nn.Module):
    """Drops squares of `size`, so that about `rate` of a feature map is zero: y = x kept / E[kept].

    A square starts at each place where it fits with γ = rate/size² · HW / places. A value under c such
    squares is kept with (1 − γ)ᶜ; dividing by just that, instead of the paper's mean over the batch, makes
    E[y] = x everywhere and leaves rows independent of each other.

    Ghiasi, Lin, Le: DropBlock. NeurIPS 2018, arXiv 1810.12890.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate = rate
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        size = min(self.size, height, width)
        places = (height - size + 1, width - size + 1)
        gamma = self.rate / size**2 * height * width / (places[0] * places[1])
        starts = (torch.rand(*x.shape[:-2], *places, device=x.device) < gamma).to(x.dtype)
        around = (size - 1,) * 4
        kept = 1 - F.max_pool2d(F.pad(starts, around), size, stride=1)
        covers = F.avg_pool2d(F.pad(x.new_ones(1, *places), around), size, stride=1) * size**2
        return x * kept / (1 - gamma) ** covers


def _check(shape: tuple[int, ...], stages: int) -> None:
    if stages < 1:
        raise UserError("backbone.channels=[] has no stage. Give at least one number.")
    if len(shape) != 3:
        raise UserError("this backbone takes images, and the data gives plain vectors: take backbone=mlp.")
    least = 2**stages
    if min(shape[1:]) < least:
        raise UserError(
            f"backbone.channels has {stages} stages, which halve an image {stages} times and need "
            f"{least}x{least} pixels; the data gives {shape[1]}x{shape[2]}. Take fewer stages or larger images."
        )
