"""LeNet as the papers on MultiMNIST have it: two convolutions, max-pooled, and a fully-connected layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.types import Count, UserError

KERNEL, POOL = 5, 2


class LeNet(nn.Module):
    """For every entry of `channels` a 5x5 convolution without padding, 2x2 max pooling and ReLU; then a fully-connected
    layer of `units`, and ReLU.

    LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proceedings of the IEEE
    86(11), 1998; in the form of Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018, arXiv
    1810.04650.
    """

    def __init__(self, shape: tuple[int, ...], channels: Sequence[Count], units: Count) -> None:
        super().__init__()
        height, width = _output_size(shape, len(channels))
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in pairwise([shape[0], *channels])))
        self.hidden = nn.Linear([shape[0], *channels][-1] * height * width, units)
        self.features = units

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden(self.stages(x).flatten(1)))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](conv=nn.Conv2d(inputs, outputs, KERNEL), pool=nn.MaxPool2d(POOL), relu=nn.ReLU())
    )


def _output_size(shape: tuple[int, ...], stages: int) -> tuple[int, int]:
    """Height and width behind all stages."""
    if len(shape) != 3:
        raise UserError("this backbone takes images, and the data gives plain vectors: take backbone=mlp.")
    height, width = shape[1:]
    for _ in range(stages):
        height, width = ((side - KERNEL + 1) // POOL for side in (height, width))
        if min(height, width) < 1:
            raise UserError(
                f"backbone=lenet leaves nothing of {shape[1]}x{shape[2]} images: each of its {stages} stages cuts "
                f"{KERNEL - 1} pixels off and halves the rest. Take larger images, or backbone=conv2."
            )
    return height, width
