"""Ordinary supervised training on all training classes at once, and what learners on its features share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor

from metarun.maths import new_head
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import Batch, Metrics, Outputs, ParallelMap, Params

MEAN, SHARE = "memory.features.mean", "memory.features.share"  # [D], and how much of it is not the zero it began at
MOMENTUM = 0.1  # of the running mean: about the last twenty batches count
Judge = Callable[[Params, Batch, Outputs], tuple[Tensor, Metrics]]  # of θ, a batch and what θ makes of it
FEATURES, LABELS = "support.features", "support.labels"  # φ's entries for the support set: [B, D] and [B]


def init(net: Net, generator: torch.Generator, head: Literal["linear", "cosine"]) -> Params:
    """θ: the network, with one output layer for all training classes; and the running mean of its features."""
    params = net.init(generator)
    if head == "cosine":
        net.classes()  # a value is no cosine
        params = new_head.with_cosine(params)
    return {**params, MEAN: torch.zeros(net.width), SHARE: torch.zeros(())}


def gradient(
    net: Net,
    params: Params,
    batch: Batch,
    parallel: ParallelMap,
    still: Collection[str] = (),
    judged: Judge | None = None,
) -> tuple[Params, Metrics]:
    """∇_θ of the loss over all classes at once, and the next running mean of features; and metrics.

    There is no slope of what is `still`. `judged` returns loss and metrics in place of those of the labels alone.
    """
    fixed = {name: params[name] for name in still}

    def loss(moving: Params, task: Batch) -> tuple[Tensor, Metrics]:
        params = {**moving, **fixed}
        features = net.features(params, task.x)
        outputs = new_head.read(net, params, new_head.scaled(net, params, features))
        total, metrics = judged(params, task, outputs) if judged else judge(net.heads, outputs, task.y)
        return total, {**metrics, MEAN: features.detach().mean(0)}

    slope, found = parallel.mean_grad(loss, {n: p for n, p in params.items() if n not in fixed}, batch)
    mean = params[MEAN].lerp(found.pop(MEAN), MOMENTUM)
    return {**slope, MEAN: mean, SHARE: params[SHARE] + MOMENTUM * (1 - params[SHARE])}, found


def training_mean(params: Params) -> Tensor:
    """The mean feature of the training images [D]: batch b of t counts a(1 − a)ᵗ⁻ᵇ / (1 − (1 − a)ᵗ), a = MOMENTUM."""
    return params[MEAN] / params[SHARE].clamp(min=MOMENTUM)  # before the first batch: zero


def with_support(net: Net, params: Params, support: Batch) -> Params:
    """φ of a learner that reads the whole support set when it predicts."""
    name, _ = net.classes()
    given = net.given(params, support)
    return {**given, FEATURES: net.features(given, support.x), LABELS: support.y[name]}
