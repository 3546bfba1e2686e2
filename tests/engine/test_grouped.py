from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.engine.grouped import PRODUCTS, convolution, convolution_backward

aten = torch.ops.aten
SHAPES = [  # groups, inputs, outputs, image, kernel, stride, padding
    (3, 1, 4, (9, 8), (3, 3), (2, 2), (1, 1)),
    (2, 5, 3, (7, 7), (3, 3), (1, 1), (1, 1)),
    (3, 4, 1, (6, 6), (3, 3), (2, 2), (1, 1)),
    (4, 2, 2, (6, 5), (1, 1), (1, 1), (0, 0)),
    (2, 2, 3, (8, 11), (3, 2), (3, 2), (0, 1)),
    (2, 2, 3, (5, 5), (5, 5), (2, 2), (2, 2)),
]


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_the_convolution(shape: Any, biased: bool) -> None:
    groups, inputs, outputs, image, kernel, stride, padding = shape
    x, weight = drawn(3, groups * inputs, *image), drawn(groups * outputs, inputs, *kernel)
    bias = drawn(groups * outputs) if biased else None
    rest = (stride, padding, (1, 1), False, (0, 0), groups)
    expected = aten.convolution(x, weight, bias, *rest)
    assert torch.allclose(convolution(x, weight, bias, *rest), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("more", [0, 1])
def test_products_are_the_transposed_convolution(shape: Any, more: int) -> None:
    groups, inputs, outputs, image, kernel, stride, padding = shape
    x, weight = drawn(3, groups * inputs, *image), drawn(groups * inputs, outputs, *kernel)
    rest = (stride, padding, (1, 1), True, tuple(min(more, s - 1) for s in stride), groups)
    assert torch.allclose(convolution(x, weight, None, *rest), aten.convolution(x, weight, None, *rest))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
def test_products_are_the_slopes(shape: Any, wanted: tuple[bool, ...]) -> None:
    groups, inputs, outputs, image, kernel, stride, padding = shape
    x, weight = drawn(3, groups * inputs, *image), drawn(groups * outputs, inputs, *kernel)
    rest = (stride, padding, (1, 1), False, (0, 0), groups)
    dy = drawn(*aten.convolution(x, weight, None, *rest).shape)
    expected = aten.convolution_backward(dy, x, weight, None, *rest, wanted)
    for found, right, asked in zip(
        convolution_backward(dy, x, weight, None, *rest, wanted), expected, wanted, strict=True
    ):
        assert torch.allclose(found, right) if asked else found is None


def test_a_convolution_of_each_channel_by_itself_is_left_to_torch() -> None:
    x, alone = drawn(2, 6, 5, 5), drawn(6, 1, 3, 3)
    rest = ((1, 1), (1, 1), (1, 1), False, (0, 0))
    assert convolution(x, alone, None, *rest, 6) is NotImplemented
    assert convolution_backward(x, x, alone, None, *rest, 6, (True, True, False)) is NotImplemented
    assert convolution(x, drawn(6, 6, 3, 3), None, *rest, 1) is NotImplemented


def test_convolutions_under_vmap_and_their_second_slopes_become_products() -> None:
    """No convolution with a group for each task is left of a meta-gradient, and it is the same one."""
    shared, tasks = drawn(4, 3, 3, 3), drawn(5, 2, 3, 8, 8)

    def meta(weight: Tensor, tasks: Tensor) -> Tensor:
        def loss(weight: Tensor, x: Tensor) -> Tensor:
            return torch.conv2d(x, weight, stride=2, padding=1).tanh().square().sum()

        def after(weight: Tensor, x: Tensor) -> Tensor:
            for _ in range(2):
                weight = weight - 0.1 * torch.func.grad(loss)(weight, x)
            return loss(weight, x)

        return torch.func.grad(lambda w: torch.vmap(after, in_dims=(None, 0))(w, tasks).sum())(weight)

    program: Any = make_fx(meta, PRODUCTS)(shared, tasks)
    places = {aten.convolution.default: 8, aten.convolution_backward.default: 9}
    groups = [node.args[places[node.target]] for node in program.graph.nodes if node.target in PRODUCTS]
    assert groups and set(groups) == {1}
    assert torch.allclose(program(shared, tasks), meta(shared, tasks))
