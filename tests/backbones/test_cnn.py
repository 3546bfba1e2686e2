from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.backbones.cnn import CNN
from metarun.errors import UserError
from metarun.maths.norm import BatchNorm, norm_layer

CONV4 = {"channels": [64] * 4, "stride": 2, "pool": 1, "norm": "batch"}
TINY = {"channels": [3, 2], "stride": 1, "pool": 2, "norm": "batch"}


def cnn(shape: tuple[int, ...] = (1, 28, 28), **changes: Any) -> CNN:
    torch.manual_seed(0)
    return CNN(shape, **{**CONV4, "dropout": 0.0, "flatten": False, "hidden": [], **changes})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_conv4_has_the_weights_of_mamls_network_and_a_scale_per_channel() -> None:
    """The paper's code: 112,005 with 5 outputs, a bias and a shift for each channel. Ours has a scale and a shift."""
    assert count(cnn()) + count(nn.Linear(64, 5)) == 112_005


def test_conv4_pool32_has_the_parameters_of_the_mini_imagenet_network() -> None:
    """32,901 for 5 ways and 3 x 84 x 84 in PyTorch ports of MAML, with a bias before each batch norm."""
    trunk = cnn((3, 84, 84), channels=[32] * 4, stride=1, pool=2, flatten=True)
    assert count(trunk) + count(nn.Linear(trunk.features, 5)) == 32_901 - 4 * 32


def test_parameter_names_read_well() -> None:
    names = dict(cnn(hidden=[8]).named_parameters())
    assert {"blocks.0.conv.weight", "blocks.3.norm.bias", "hidden.0.weight"} <= names.keys()


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({"stride": 2}, 64 * 2 * 2),  # 28 14 7 4 2
        ({"stride": 1, "pool": 2}, 64 * 1 * 1),  # 28 14 7 3 1
        ({"stride": [1, 2, 1, 1], "pool": [2, 1, 1, 3]}, 64 * 2 * 2),  # 28 14 7 7 2
    ],
)
def test_strides_round_up_and_pools_round_down(changes: dict[str, Any], features: int) -> None:
    trunk = cnn(**changes, flatten=True)
    assert trunk.features == features
    assert trunk(torch.rand(2, 1, 28, 28)).shape == (2, features)


@pytest.mark.parametrize("side", [28, 84])
def test_eight_strided_convolutions_fit_omniglot_and_mini_imagenet(side: int) -> None:
    trunk = cnn((3, side, side), channels=[8, 8, 8, 8, 8, 8, 8, 8], stride=[1, 2] * 4, flatten=True)
    assert trunk(torch.rand(2, 3, side, side)).shape == (2, trunk.features)


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((1, 8, 8), {"stride": 1, "pool": 2}, "backbone.pool=.*8x8 images: block 4"),
        ((1, 28, 28), {"pool": [2, 2]}, "backbone.pool has 2 entries and backbone.channels 4"),
        ((1, 28, 28), {"stride": 0}, "backbone.stride=.* below 1"),
        ((1, 28, 28), {"norm": "bach"}, "backbone.norm=bach"),
        ((1, 28, 28), {"dropout": 1.5}, "backbone.dropout=1.5"),
        ((1,), {}, "backbone=mlp"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(shape: tuple[int, ...], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        cnn(shape, **changes)
    assert "\n" not in str(caught.value)


def test_flatten_false_is_the_mean_over_positions() -> None:
    x = torch.rand(2, 1, 28, 28)
    flat = cnn(flatten=True)(x).view(2, 64, 4)
    torch.testing.assert_close(cnn(flatten=False)(x), flat.mean(-1))


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_norm_makes_mean_zero_and_variance_one(kind: str) -> None:
    x = 3 + 5 * torch.randn(6, 16, 7, 7)
    y = norm_layer(kind, 16)(x)
    y = y.transpose(0, 1).flatten(1) if kind == "batch" else y.reshape(6 * (2 if kind == "group" else 1), -1)
    torch.testing.assert_close(y.mean(1), torch.zeros(len(y)), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(len(y)), atol=1e-4, rtol=0)


def test_batch_norm_takes_statistics_from_the_parameter_dict() -> None:
    norm, x = BatchNorm(3), torch.randn(2, 3, 4, 4)
    given = {**dict(norm.named_parameters()), "mean": torch.full((3,), 2.0), "var": torch.full((3,), 4.0)}
    torch.testing.assert_close(functional_call(norm, given, (x,)), (x - 2) / 2)
    assert norm.mean is None


@pytest.mark.parametrize(("kind", "independent"), [("group", True), ("layer", True), ("none", True), ("batch", False)])
def test_only_batch_norm_lets_rows_see_each_other(kind: str, independent: bool) -> None:
    trunk, x = cnn(norm=kind), torch.rand(4, 1, 28, 28)
    others = torch.cat([x[:1], 5 * torch.rand(3, 1, 28, 28)])
    assert torch.allclose(trunk(x)[0], trunk(others)[0], atol=1e-6) == independent


@pytest.mark.parametrize("kind", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("reduce", [{"pool": 2}, {"pool": 1, "stride": 2}])
def test_first_and_second_derivatives_match_finite_differences(kind: str, reduce: dict[str, int]) -> None:
    trunk = cnn((1, 5, 5), **{**TINY, "norm": kind, **reduce}, hidden=[3]).double()
    names = [name for name, _ in trunk.named_parameters()]
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)

    def call(*values: Tensor) -> Tensor:
        return functional_call(trunk, dict(zip(names, values)), (x,)).sin()

    assert torch.autograd.gradcheck(call, tuple(trunk.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tuple(trunk.parameters()), fast_mode=True)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4)])
def test_given_the_batchs_own_statistics_batch_norm_and_its_gradient_are_the_same(shape: tuple[int, ...]) -> None:
    norm, x = BatchNorm(3).double(), torch.randn(shape, dtype=torch.float64)
    axes = [d for d in range(x.ndim) if d != 1]

    def given(v: Tensor) -> Tensor:
        var, mean = torch.var_mean(v, axes, correction=0)
        return functional_call(norm, {"mean": mean, "var": var}, (v,))

    torch.testing.assert_close(given(x), norm(x))
    slopes = [grad(lambda v, f=f: f(v).sin().sum())(x) for f in (given, norm)]
    torch.testing.assert_close(*slopes)


def test_inputs_are_left_as_they_were() -> None:
    x = torch.rand(2, 1, 28, 28)
    before = x.clone()
    cnn(norm="none")(x)
    assert torch.equal(x, before)


def test_dropout_drops_in_training_only_and_differs_between_tasks() -> None:
    trunk, x = cnn(**TINY, dropout=0.5, hidden=[64]), torch.rand(1, 4, 1, 28, 28).expand(2, -1, -1, -1, -1)
    params = {n: p.detach() for n, p in trunk.named_parameters()}
    first, second = vmap(lambda t: functional_call(trunk, params, (t,)), randomness="different")(x)
    assert not torch.equal(first, second)
    trunk.eval()
    assert torch.equal(trunk(x[0]), trunk(x[0]))


def test_dropout_keeps_the_expected_features() -> None:
    trunk, x = cnn(**TINY, dropout=0.5).double(), torch.rand(1, 1, 28, 28).double()
    torch.manual_seed(1)
    mean = torch.stack([trunk(x) for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, trunk.eval()(x), rtol=0.25, atol=0)


def slope(trunk: CNN, params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return grad(lambda p: functional_call(trunk, p, (x,)).square().mean())(params)


def test_dynamo_captures_the_gradient_of_conv4_in_one_graph() -> None:
    trunk, x = cnn(), torch.rand(3, 1, 28, 28)
    params = {n: p.detach() for n, p in trunk.named_parameters()}
    captured = torch.compile(slope, backend="aot_eager", fullgraph=True)(trunk, params, x)
    for name, value in slope(trunk, params, x).items():
        torch.testing.assert_close(captured[name], value, rtol=1e-3, atol=1e-5)


def test_compiled_equals_eager() -> None:
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("torch.compile needs a C++ compiler")
    trunk, x = cnn(channels=[4]), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(trunk)(x), trunk(x), rtol=1e-4, atol=1e-5)
