from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.backbones.mlp import MLP
from metarun.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_sinusoid_network_has_1761_parameters() -> None:
    assert count(MLP((1,), [40, 40], "none")) + count(nn.Linear(40, 1)) == 1_761


def test_the_omniglot_network_is_784_256_128_64_64() -> None:
    widths = [784, 256, 128, 64, 64]
    weights = sum(a * b for a, b in pairwise(widths))
    assert count(MLP((1, 28, 28), widths[1:], "batch")) == weights + 2 * sum(widths[1:])


def test_it_computes_relu_of_affine_maps() -> None:
    trunk, x = MLP((1, 2, 2), [5, 3], "none"), torch.randn(4, 1, 2, 2)
    first, second = (layer.linear for layer in trunk.layers)
    hidden = (x.reshape(4, 4) @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(trunk(x), (hidden @ second.weight.T + second.bias).clamp(min=0))


def test_without_hidden_layers_it_is_the_flattened_input() -> None:
    trunk, x = MLP((3, 2, 2), [], "none"), torch.randn(4, 3, 2, 2)
    assert trunk.features == 12
    assert torch.equal(trunk(x), x.reshape(4, 12))


def test_parameter_names_read_well() -> None:
    names = dict(MLP((1,), [8], "layer").named_parameters())
    assert set(names) == {f"layers.0.{part}" for part in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")}


def test_what_batch_norm_takes_away_again_is_no_parameter() -> None:
    assert "layers.0.linear.bias" not in dict(MLP((1,), [8], "batch").named_parameters())


@pytest.mark.parametrize(("kind", "independent"), [("group", True), ("layer", True), ("batch", False)])
def test_only_batch_norm_lets_rows_see_each_other(kind: str, independent: bool) -> None:
    trunk, x = MLP((6,), [16, 8], kind), torch.rand(4, 6)
    others = torch.cat([x[:1], 5 * torch.rand(3, 6)])
    assert torch.allclose(trunk(x)[0], trunk(others)[0], atol=1e-6) == independent


@pytest.mark.parametrize("kind", ["batch", "group", "layer", "none"])
def test_first_and_second_derivatives_match_finite_differences(kind: str) -> None:
    torch.manual_seed(0)
    trunk = MLP((2,), [4, 3], kind).double()
    names = [name for name, _ in trunk.named_parameters()]
    x = torch.randn(5, 2, dtype=torch.float64)

    def call(*values: Tensor) -> Tensor:
        return functional_call(trunk, dict(zip(names, values)), (x,)).sin()

    assert torch.autograd.gradcheck(call, tuple(trunk.parameters()))
    assert torch.autograd.gradgradcheck(call, tuple(trunk.parameters()))


def test_an_unknown_norm_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"backbone.norm=bach"):
        MLP((1,), [4], "bach")
