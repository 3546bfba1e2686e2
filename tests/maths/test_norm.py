from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.errors import UserError
from metarun.maths.norm import BatchNorm, FixedNorm, norm_layer
from metarun.types import Params


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 5)])
def test_without_statistics_it_is_torchs_batch_norm_in_training(shape: tuple[int, ...]) -> None:
    ours = BatchNorm(3).double()
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double().train()
    assert torch.allclose(ours(images(*shape)), theirs(images(*shape)), atol=1e-12)
    assert torch.allclose(ours.eval()(images(*shape)), theirs(images(*shape)), atol=1e-12)  # it has no other mode


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 5)])
def test_with_statistics_it_is_torchs_batch_norm_in_evaluation(shape: tuple[int, ...]) -> None:
    x, mean, var = images(*shape), images(3), images(3) ** 2
    layer = BatchNorm(3).double()
    found = functional_call(layer, {"mean": mean, "var": var}, (x,))
    assert torch.allclose(found, F.batch_norm(x, mean, var, layer.weight, layer.bias), atol=1e-12)


def test_it_keeps_nothing_of_a_batch() -> None:
    layer = BatchNorm(3).double()
    layer(images(4, 3, 5, 5))
    assert layer.mean is None and layer.var is None
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_statistics_handed_in_are_differentiated_through() -> None:
    layer = BatchNorm(2).double()

    def normed(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return functional_call(layer, {"mean": mean, "var": var}, (x,))

    inputs = tuple(t.requires_grad_() for t in (images(3, 2, 2, 2), images(2), images(2) ** 2))
    assert torch.autograd.gradcheck(normed, inputs)


def test_second_derivatives_by_an_adapted_weight_are_right_under_vmap() -> None:
    """torch's own, F.batch_norm(x, None, None, weight, bias, training=True), gives others under vmap (torch 2.13)."""
    layer, x = BatchNorm(2).double(), images(3, 4, 2, 3, 3)
    params = {"weight": images(2) + 2, "bias": images(2)}

    def end(norm: Callable[[Params, Tensor], Tensor]) -> Callable[[Params, Tensor], Tensor]:
        def adapted(params: Params, x: Tensor) -> Tensor:
            slope = torch.func.grad(lambda p: (norm(p, x) ** 3).mean())(params)
            fast = {name: p - 0.3 * slope[name] for name, p in params.items()}
            return (norm(fast, x.flip(0)) ** 4).mean()

        return adapted

    ours = end(lambda p, x: functional_call(layer, p, (x,)))
    by_hand = end(lambda p, x: plain(x, p["weight"], p["bias"]))
    found = torch.func.grad(lambda p: torch.vmap(ours, (None, 0))(p, x).sum())(params)
    expected = torch.func.grad(lambda p: sum(by_hand(p, task) for task in x))(params)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-10) for name in params)


def test_fixed_norm_scales_and_shifts_each_channel() -> None:
    x = images(2, 3, 4, 4)
    weight, bias = images(3), images(3) + 1
    found = FixedNorm(weight, bias)(x)
    assert torch.allclose(found[:, 1], x[:, 1] * weight[1] + bias[1])


def test_norms_by_name() -> None:
    assert isinstance(norm_layer("batch", 4), BatchNorm)
    assert isinstance(norm_layer("none", 4), nn.Identity)
    assert [norm_layer("group", c).num_groups for c in (4, 8, 64, 12)] == [1, 1, 8, 1]
    assert norm_layer("layer", 64).num_groups == 1
    with pytest.raises(UserError, match=r"backbone.norm=spectral is unknown: take batch, group, layer or none"):
        norm_layer("spectral", 4)
