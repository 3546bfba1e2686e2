"""Batch normalisation by the batch's own statistics, fast and right under vmap, with both derivatives by hand.

    y = w x̂ + b,  x̂ = r (x − mean),  r = 1 / √(var + ε),  statistics over all axes but the channels

torch differentiates its own backward in a dozen passes over the activations, and under vmap with a weight for each
task wrongly (torch 2.13). Here each derivative is one or two calls of its fused kernel, and vmap folds the tasks into
the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.gradient import mapped, of_each

Tensors = tuple[Tensor, ...]


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if mapped():
        return Normalised.apply(x, weight, bias, eps)[0]
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


class Normalised(torch.autograd.Function):
    """(x, w, b) -> y, mean, r."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensors:
        return torch.ops.aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, weight, mean, r)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *NormalisedBackward.apply(g, *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        return _folded(Normalised, info.batch_size, dims, inputs)


class NormalisedBackward(torch.autograd.Function):
    """(g, x, w, mean, r) -> the slope of Σ g y by x, w and b: w r P(g), Σ g x̂, Σ g.

    P(g) = g − mean(g) − x̂ mean(g x̂) is symmetric.
    """

    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float) -> Tensors:
        return _slope(g, x, weight, mean, r, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *tensors, ctx.eps = inputs
        _, g_xhat, g_sum = output
        ctx.save_for_backward(*tensors, g_xhat, g_sum)

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_w: Tensor, v_b: Tensor) -> tuple[Tensor | None, ...]:
        return *NormalisedDoubleBackward.apply(v, v_w, v_b, *ctx.saved_tensors, ctx.eps), None, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        return _folded(NormalisedBackward, info.batch_size, dims, inputs)


class NormalisedDoubleBackward(torch.autograd.Function):
    """(v, v_w, v_b, g, x, w, mean, r, Σ g x̂, Σ g) -> the slope of S by g, x and w.

    S = Σ v w r P(g) + v_w Σ g x̂ + v_b Σ g
    ∂S/∂g = w r P(v) + v_w x̂ + v_b
    ∂S/∂x = r P(q) − x̂ w r² E / n      with q = ∂S/∂x̂ = v_w g − w r (v Σ g x̂ + g Σ v x̂) / n
    ∂S/∂w = r E                         with E = Σ v P(g), and n images times pixels in a channel
    """

    @staticmethod
    def forward(v: Tensor, v_w: Tensor, v_b: Tensor, g: Tensor, x: Tensor, *channel: Any) -> Tensors:
        weight, mean, r, g_xhat, g_sum, eps = channel
        n = x.numel() // x.shape[1]
        each = (-1, *[1] * (x.ndim - 2))
        by_g, v_xhat, v_sum = _slope(v, x, weight, mean, r, eps)
        energy = (v * g).sum([d for d in range(x.ndim) if d != 1]) - (v_sum * g_sum + v_xhat * g_xhat) / n
        by_g.addcmul_(x, (v_w * r).view(each)).add_((v_b - v_w * r * mean).view(each))
        # r P(q) = r (q − mean(q) − x̂ mean(q x̂)), gathered by v, g, x and 1
        at_v = -weight * r * g_xhat / n
        at_g = v_w - weight * r * v_xhat / n
        at_xhat = -(at_v * v_xhat + at_g * g_xhat + weight * r * energy) / n
        at_one = -(at_v * v_sum + at_g * g_sum) / n - at_xhat * r * mean
        by_x = v * (r * at_v).view(each)
        by_x.addcmul_(g, (r * at_g).view(each)).addcmul_(x, (r * r * at_xhat).view(each)).add_((r * at_one).view(each))
        return by_g, by_x, r * energy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Nothing is kept: this is the last derivative there is."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("batch norm has no third derivative here; take backbone.norm=group")

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        return _folded(NormalisedDoubleBackward, info.batch_size, dims, inputs)


def _slope(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float) -> Tensors:
    kernel = torch.ops.aten.native_batch_norm_backward
    return kernel(g, x, weight, None, None, mean, r, True, eps, [True, True, True])


def _folded(
    function: type[torch.autograd.Function], tasks: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[Tensors, tuple[int, ...]]:
    """Applies it with the task axis folded into the channels: activations [B, T*C, H, W], what a channel has [T*C]."""

    def fold(t: Tensor, dim: int | None) -> Tensor:
        t = of_each(t, dim, tasks)
        channel = min(1, t.ndim - 2)
        return t.movedim(0, channel).flatten(channel, channel + 1)

    *tensors, eps = inputs
    outputs = function.apply(*(fold(t, dim) for t, dim in zip(tensors, dims, strict=False)), eps)
    places = tuple(min(1, t.ndim - 1) for t in outputs)
    return tuple(t.unflatten(place, (tasks, -1)) for t, place in zip(outputs, places, strict=True)), places
