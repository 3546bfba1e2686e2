"""Plain convolutional networks: the trunks of MAML, ProtoNet and the tutorials."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.maths.norm import norm_layer


class CNN(nn.Module):
    """Blocks of 3x3 convolution, norm, ReLU and max-pool; then all positions (`flatten`) or their mean.

    `hidden` adds fully-connected ReLU layers. Dropout stands before every fully-connected layer, the output
    layer included.

    conv4: Finn, Abbeel, Levine: Model-Agnostic Meta-Learning. ICML 2017, arXiv 1703.03400, appendix A.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: Sequence[int],
        stride: int | Sequence[int],
        pool: int | Sequence[int],
        norm: str,
        dropout: float,
        flatten: bool,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        strides = _each("stride", stride, len(channels))
        pools = _each("pool", pool, len(channels))
        height, width = _output_size(shape, strides, pools)
        if not 0 <= dropout < 1:
            raise UserError(f"backbone.dropout={dropout} is no rate: take 0 (off) to below 1.")
        inputs = [shape[0], *channels]
        self.flatten = flatten
        self.blocks = nn.Sequential(
            *(_block(*wiring, norm) for wiring in zip(inputs[:-1], channels, strides, pools, strict=True))
        )
        self.dropout = nn.Dropout(dropout)
        widths = [inputs[-1] * (height * width if flatten else 1), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.features = widths[-1]

    @property
    def stages(self) -> nn.Sequential:
        """What computes the feature maps."""
        return self.blocks

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        x = self.dropout(x.flatten(1) if self.flatten else x.mean((2, 3)))
        for layer in self.hidden:
            x = self.dropout(F.relu(layer(x)))
        return x


def _block(inputs: int, outputs: int, stride: int, pool: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm != "batch")  # batch norm takes a bias away again
    layers = OrderedDict[str, nn.Module](conv=conv)
    layers |= {"norm": norm_layer(norm, outputs), "relu": nn.ReLU()}
    if pool > 1:
        layers["pool"] = nn.MaxPool2d(pool)
    return nn.Sequential(layers)


def _each(key: str, value: int | Sequence[int], blocks: int) -> list[int]:
    """One value for every block."""
    values = [value] * blocks if isinstance(value, int) else list(value)
    if len(values) != blocks:
        raise UserError(
            f"backbone.{key} has {len(values)} entries and backbone.channels {blocks}: "
            "give one per block, or one number for all."
        )
    if min(values, default=1) < 1:
        raise UserError(f"backbone.{key}={values} has an entry below 1: 1 means none.")
    return values


def _output_size(shape: tuple[int, ...], strides: list[int], pools: list[int]) -> tuple[int, int]:
    """Height and width after all blocks."""
    if len(shape) != 3:
        raise UserError("this backbone takes images, and the data gives plain vectors: take backbone=mlp.")
    height, width = shape[1:]
    for block, (stride, pool) in enumerate(zip(strides, pools, strict=True), start=1):
        height, width = ((side - 1) // stride + 1 for side in (height, width))
        if min(height, width) < pool:
            raise UserError(
                f"backbone.pool={pools} leaves nothing of {shape[1]}x{shape[2]} images: block {block} "
                f"would pool {height}x{width} by {pool}. Take smaller or fewer poolings, or larger images."
            )
        height, width = height // pool, width // pool
    return height, width
