"""A new task on a trained trunk: an output layer is fitted to its support set, alone or with the whole network.

A new output layer reads features scaled to length 1, so that its step size does not depend on the trunk's scale; one
that was trained reads the features it was trained on. Where θ was trained with some of the heads of a task, those are
kept beside new ones: they read features divided by the length that is usual in the support set, with weights multiplied
by it. So they begin as they were, and one step size suits both. A cosine layer, which has a scale and no bias of its
own, gives that scale times the cosines of features and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.closed_head import imprinted
from metarun.maths.inner import sgd
from metarun.maths.losses import loss
from metarun.maths.net import Net, width
from metarun.types import Batch, Head, Outputs, Params, Targets, learned

Objective = Callable[[Outputs, Targets], Tensor]

WEIGHT, BIAS = LAYER = ("head.weight", "head.bias")
SCALE = "head.log_scale"  # θ's entry that makes a layer a cosine layer
FIRST_SCALE = 10.0  # before training
LENGTH = "head.length"  # φ's entry for the usual length of features, where some heads are kept and others new


def with_cosine(params: Params) -> Params:
    """θ with its output layer as a cosine layer."""
    return {**{n: p for n, p in params.items() if n != BIAS}, SCALE: torch.tensor(math.log(FIRST_SCALE))}


def fit(
    net: Net,
    params: Params,
    support: Batch,
    lr: float,
    steps: int,
    moving: Literal["head", "all"],
    objective: Objective | None = None,
) -> Iterator[Params]:
    """Gradient descent on the support set: of the output layer on a fixed trunk, or of everything.

    It starts from θ where its output layer is that of the task, else from a new one: of zeros for the heads that θ does
    not have, or of the class means where it is a cosine layer. What it descends is the `objective`, or the loss.
    """
    descended = objective or partial(loss, net.heads)
    given = net.given(params, support)
    if not len(support.x):  # the task's heads are those of θ, and there is nothing to fit them to
        yield given
        return
    if moving == "head":  # whose features are computed once: the trunk does not move
        raw = net.seen(given, support.x)
        start = _start(net, given, lambda: raw, support.y)
        features = Batch(scaled(net, start, raw), support.y)

        def of_features(fast: Params, features: Batch, _: int) -> Tensor:
            return descended(read(net, fast, features.x), features.y)

        yield from sgd(of_features, start, features, lr, steps, [n for n in LAYER if n in params], first_order=True)
        return

    def of_images(fast: Params, support: Batch, _: int) -> Tensor:
        return descended(predict(net, fast, support.x), support.y)

    start = _start(net, params, lambda: net.seen(given, support.x), support.y)
    for fast in sgd(of_images, start, support, lr, steps, list(learned(params)), first_order=True):
        yield net.given(fast, support)


def _start(net: Net, params: Params, features: Callable[[], Tensor], y: Targets) -> Params:
    """θ with the output layer that a fit begins at; unless all of it is kept or zero, by the support set's features."""
    if net.fits:
        return params
    if SCALE in params:
        name, ways = net.classes()
        return {**params, **dict(zip(LAYER, imprinted(scaled(net, params, features()), y[name], ways), strict=True))}
    return partly(net, params, features()) if kept(net) else blank(net, params)


def blank(net: Net, params: Params) -> Params:
    """θ with an output layer of zeros for the heads of the task."""
    weight = params[WEIGHT]
    zeros = weight.new_zeros(width(net.heads), weight.shape[1])
    return {**params, WEIGHT: zeros, BIAS: zeros[:, 0]}


def partly(net: Net, params: Params, features: Tensor) -> Params:
    """The same, but for the heads that are kept, and the length of features by which those are read."""
    length, old = features.square().sum(-1).mean().sqrt(), [head.size for head in net.trained.values()]
    start = {**params, WEIGHT: params[WEIGHT] * length}
    zeros = blank(net, params)
    layer = {}
    for part in LAYER:
        trained = dict(zip(net.trained, start[part].split(old), strict=True))
        new = dict(zip(net.heads, zeros[part].split([head.size for head in net.heads.values()]), strict=True))
        layer[part] = torch.cat([trained[name] if name in kept(net) else new[name] for name in net.heads])
    return {**params, **layer, LENGTH: length}


def kept(net: Net) -> set[str]:
    """Those of the task's heads that θ was trained with; of one whose classes are dealt anew, nothing can be kept."""
    alike = {name for name, head in net.trained.items() if name in net.heads and _kind(head) == _kind(net.heads[name])}
    return {name for name in alike if not net.heads[name].fresh}


def _kind(head: Head) -> tuple[str, int]:
    return head.kind, head.size


def predict(net: Net, fast: Params, x: Tensor) -> Outputs:
    """Outputs by head."""
    return read(net, fast, seen(net, fast, x))


def seen(net: Net, params: Params, x: Tensor) -> Tensor:
    """The features that the output layer reads."""
    return scaled(net, params, net.seen(params, x))


def scaled(net: Net, params: Params, features: Tensor) -> Tensor:
    """Features as the output layer reads them: of length 1, as they are, or as each head reads them [B, H, D]."""
    if net.fits and SCALE not in params:
        return features
    unit = F.normalize(features, dim=-1)
    if LENGTH not in params:
        return unit
    return torch.stack([features / params[LENGTH] if name in kept(net) else unit for name in net.heads], -2)


def read(net: Net, params: Params, features: Tensor) -> Outputs:
    """Outputs by head of the output layer in φ, whatever heads θ was trained with."""
    weight = params[WEIGHT]
    if SCALE in params:
        weight = params[SCALE].exp() * F.normalize(weight, dim=-1)
    return net.linear(features, weight, params.get(BIAS))
