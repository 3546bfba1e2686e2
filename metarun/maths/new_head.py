"""A new task on a trained trunk: an output layer is fitted to its support set, alone or with the whole network.

A new output layer reads features scaled to length 1, so that its step size does not depend on the trunk's scale; one
that was trained reads the features it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from metarun.maths.inner import sgd
from metarun.maths.losses import loss
from metarun.maths.net import Net, width
from metarun.types import Batch, Outputs, Params, learned

LAYER = ("head.weight", "head.bias")


def fit(
    net: Net, params: Params, support: Batch, lr: float, steps: int, moving: Literal["head", "all"]
) -> Iterator[Params]:
    """Gradient descent on the support set: of the output layer on a fixed trunk, or of everything.

    It starts from θ where its output layer is that of the task, else from an output layer of zeros.
    """
    start = params if net.fits else blank(net, params)
    if moving == "head":
        start = net.given(start, support)
        features = Batch(seen(net, start, support.x), support.y)  # once: the trunk does not move

        def of_features(fast: Params, features: Batch, _: int) -> Tensor:
            return loss(net.heads, read(net, fast, features.x), features.y)

        yield from sgd(of_features, start, features, lr, steps, LAYER, first_order=True)
        return

    def of_images(fast: Params, support: Batch, _: int) -> Tensor:
        return loss(net.heads, predict(net, fast, support.x), support.y)

    for fast in sgd(of_images, start, support, lr, steps, list(learned(start)), first_order=True):
        yield net.given(fast, support)


def blank(net: Net, params: Params) -> Params:
    """θ with an output layer of zeros for the heads of the task."""
    weight = params["head.weight"]
    zeros = weight.new_zeros(width(net.heads), weight.shape[1])
    return {**params, "head.weight": zeros, "head.bias": zeros[:, 0]}


def predict(net: Net, fast: Params, x: Tensor) -> Outputs:
    """Outputs by head."""
    return read(net, fast, seen(net, fast, x))


def seen(net: Net, params: Params, x: Tensor) -> Tensor:
    """The features that the output layer reads."""
    features = net.features(params, x)
    return features if net.fits else F.normalize(features, dim=-1)


def read(net: Net, params: Params, features: Tensor) -> Outputs:
    """Outputs by head of the output layer in φ, whatever heads θ was trained with."""
    return net.read(F.linear(features, params["head.weight"], params["head.bias"]))
