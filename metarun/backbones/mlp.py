"""Fully-connected network for inputs of any shape."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from metarun.maths.norm import norm_layer
from metarun.types import Count


class MLP(nn.Module):
    """Flattens its input; then linear, norm, ReLU for every entry of `hidden`.

    Finn, Abbeel, Levine: Model-Agnostic Meta-Learning. ICML 2017, arXiv 1703.03400, sections 5.1 and 5.2.
    """

    def __init__(self, shape: tuple[int, ...], hidden: Sequence[Count], norm: str) -> None:
        super().__init__()
        widths = [math.prod(shape), *hidden]
        self.layers = nn.Sequential(*(_layer(a, b, norm) for a, b in pairwise(widths)))
        self.features = widths[-1]

    @property
    def stages(self) -> nn.Sequential:
        """The layers, one after the other."""
        return self.layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


def _layer(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    bias = norm != "batch"  # which takes it away again: what is left of it is rounding noise, and Adam amplifies that
    parts = OrderedDict[str, nn.Module](flat=nn.Flatten(), linear=nn.Linear(inputs, outputs, bias=bias))
    return nn.Sequential(parts | {"norm": norm_layer(norm, outputs), "relu": nn.ReLU()})
