"""Convolutions in which each task has weights of its own, as one matrix product for each task.

vmap makes them convolutions with a group for each task, and cuDNN starts those, backward above all, group by group.
What `PRODUCTS` names is traced as products instead:

    y = W columns(x),    dx = image(Wᵀ dy),    dW = dy columns(x)ᵀ

`columns` lays the patch under each output position beside the others: [G, C·kh·kw, B·h·w]. `image` is its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where the kernel of a convolution stands: the large image, the kernel, and the steps between its places."""

    size: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]

    @property
    def places(self) -> tuple[int, int]:
        high, wide = (
            (side + 2 * pad - kernel) // stride + 1
            for side, kernel, stride, pad in zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        )
        return high, wide

    def columns(self, x: Tensor, groups: int) -> Tensor:
        """[B, G·C, H, W] -> [G, C·kh·kw, B·h·w]."""
        up, left = self.padding
        patches = F.pad(x, (left, left, up, up)).unfold(2, self.kernel[0], self.stride[0])
        patches = patches.unfold(3, self.kernel[1], self.stride[1])  # [B, G·C, h, w, kh, kw]
        laid = patches.unflatten(1, (groups, -1)).permute(1, 2, 5, 6, 0, 3, 4)
        return laid.reshape(groups, laid.shape[1:4].numel(), laid.shape[4:].numel())

    def image(self, columns: Tensor, rows: int) -> Tensor:
        """[G, C·kh·kw, B·h·w] -> [B, G·C, H, W]: what several patches have of a pixel is added."""
        (high, wide), (up, left) = self.places, self.padding
        patches = columns.unflatten(2, (rows, high, wide)).unflatten(1, (-1, *self.kernel))
        patches = patches.permute(4, 0, 1, 2, 3, 5, 6)  # [B, G, C, kh, kw, h, w]
        size = [side + 2 * pad for side, pad in zip(self.size, self.padding, strict=True)]
        padded = columns.new_zeros(*patches.shape[:3], *size)
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                end = i + self.stride[0] * (high - 1) + 1, j + self.stride[1] * (wide - 1) + 1
                padded[..., i : end[0] : self.stride[0], j : end[1] : self.stride[1]].add_(patches[:, :, :, i, j])
        return padded[..., up : up + self.size[0], left : left + self.size[1]].flatten(1, 2)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """`aten.convolution`, or NotImplemented where the one of torch is to do it."""
    if not _fits(weight, dilation, groups):
        return NotImplemented
    rows, kernel, matrix = len(x), weight.shape[2:], _matrix(weight, groups)
    if transposed:
        ends = zip(x.shape[2:], stride, padding, kernel, output_padding, strict=True)
        grid = Grid([(n - 1) * s - 2 * p + k + more for n, s, p, k, more in ends], kernel, stride, padding)
        y = grid.image(matrix.mT @ _by_group(x, groups), rows)
    else:
        grid = Grid(x.shape[2:], kernel, stride, padding)
        y = (matrix @ grid.columns(x, groups)).unflatten(2, (rows, *grid.places))
        y = y.permute(2, 0, 1, 3, 4).flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def convolution_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    """`aten.convolution_backward`, or NotImplemented where the one of torch is to do it."""
    if transposed or not _fits(weight, dilation, groups):
        return NotImplemented
    grid, slope = Grid(x.shape[2:], weight.shape[2:], stride, padding), _by_group(dy, groups)
    return (
        grid.image(_matrix(weight, groups).mT @ slope, len(x)) if wanted[0] else None,
        (slope @ grid.columns(x, groups).mT).view_as(weight) if wanted[1] else None,
        dy.sum((0, 2, 3)) if wanted[2] else None,
    )


def _fits(weight: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Whether this is a convolution of images in groups, and not one of each channel by itself."""
    by_channel = len(weight) == groups and weight.shape[1] == 1
    return groups > 1 and not by_channel and weight.ndim == 4 and all(step == 1 for step in dilation)


def _matrix(weight: Tensor, groups: int) -> Tensor:
    """[G·F, C, kh, kw] -> [G, F, C·kh·kw]."""
    return weight.unflatten(0, (groups, -1)).flatten(2)


def _by_group(y: Tensor, groups: int) -> Tensor:
    """[B, G·F, h, w] -> [G, F, B·h·w]."""
    return y.unflatten(1, (groups, -1)).permute(1, 2, 0, 3, 4).flatten(2)


PRODUCTS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: convolution,
    torch.ops.aten.convolution_backward.default: convolution_backward,
}
