"""A new task on a trained trunk: a new output layer is fitted to the support set, alone or with the whole network."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from metarun.maths.inner import sgd
from metarun.maths.losses import judge
from metarun.maths.net import Net, width
from metarun.types import Batch, Heads, Outputs, Params

HEAD = ("head.weight", "head.bias")


def new_head(params: Params, heads: Heads) -> Params:
    """θ with an output layer of zeros for `heads`."""
    weight = params["head.weight"]
    zeros = weight.new_zeros(width(heads), weight.shape[1])
    return {**params, "head.weight": zeros, "head.bias": zeros[:, 0]}


def fit_head(net: Net, params: Params, support: Batch, lr: float, steps: int) -> Iterator[Params]:
    """Gradient descent on the output layer over unit features; the trunk stays, so it runs once."""
    start = net.given(new_head(params, net.heads), support)
    features = Batch(unit_features(net, start, support.x), support.y)

    def loss(fast: Params, features: Batch, _: int) -> Tensor:
        return judge(net.heads, read_head(net, fast, features.x), features.y)[0]

    return sgd(loss, start, features, lr, steps, HEAD, first_order=True)


def fit_all(net: Net, params: Params, support: Batch, lr: float, steps: int) -> Iterator[Params]:
    """Gradient descent on everything, from a new output layer."""
    start = new_head(params, net.heads)

    def loss(fast: Params, support: Batch, _: int) -> Tensor:
        outputs = read_head(net, fast, unit_features(net, fast, support.x))
        return judge(net.heads, outputs, support.y)[0]

    for fast in sgd(loss, start, support, lr, steps, list(start), first_order=True):
        yield net.given(fast, support)


def unit_features(net: Net, params: Params, x: Tensor) -> Tensor:
    """The trunk's features, scaled to length 1: the step size of a new head does not depend on the trunk's scale."""
    return F.normalize(net.features(params, x), dim=-1)


def read_head(net: Net, params: Params, features: Tensor) -> Outputs:
    return net.read(F.linear(features, params["head.weight"], params["head.bias"]))
