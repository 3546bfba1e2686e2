from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.algos.maml import MAML
from metarun.algos.warp import Warp, through
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

ALPHA, STEPS = 0.1, 2
VMAP = Parallel("vmap", 2)


def start(algo: Warp, scatter: float = 0.0) -> Params:
    """θ, with maps that are near the identity."""
    generator = torch.Generator().manual_seed(0)
    params = {name: p.double() for name, p in algo.init(generator).items()}
    noise = {n: scatter * torch.randn(p.shape, generator=generator).double() for n, p in params.items()}
    return {name: p + noise[name] if name.startswith("warp.") else p for name, p in params.items()}


def without(params: Params) -> Params:
    return {name: p for name, p in params.items() if not name.startswith("warp.")}


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("first_order", [True, False])
def test_with_the_identity_it_is_maml(
    first_order: bool,
    norm: str,
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    close: Callable[..., bool],
) -> None:
    net = conv_net(norm, norm_stats)
    algo = Warp(net, ALPHA, STEPS, first_order)
    maml = MAML(net, ALPHA, STEPS, first_order, inner_loss="mean", adapt_norm=True, remat=False)
    params = start(algo)
    expected, scores = maml.meta_grad(without(params), episode(), VMAP)
    slope, metrics = algo.meta_grad(params, episode(), VMAP)
    assert close(without(slope), expected) and close(metrics, scores)
    support, _ = tree_map(lambda t: t[0], episode())
    one, other = last(algo.adapt(params, support, 3)), last(maml.adapt(without(params), support, 3))
    assert all(torch.allclose(one[name], p, atol=1e-12) for name, p in other.items())


def test_every_layer_of_the_trunk_has_a_map_that_inner_steps_leave(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    algo = Warp(conv_net("none"), ALPHA, STEPS, False)
    params = start(algo, scatter=0.1)
    maps = {f"warp.trunk.blocks.{block}.conv.weight": size for block, size in ((0, 3), (1, 4))}
    assert {n: tuple(p.shape) for n, p in params.items() if n.startswith("warp.")} == {
        name: (size, size) for name, size in maps.items()
    }
    support, _ = tree_map(lambda t: t[0], episode())
    fast = last(algo.adapt(params, support, 3))
    assert {name for name in params if fast[name] is params[name]} == maps.keys()
    slope, _ = algo.meta_grad(params, episode(), VMAP)
    assert all(bool(slope[name].any()) for name in maps)


def test_the_network_maps_what_each_layer_gives(conv_net: Callable[..., Net], episode: Callable[..., Episode]) -> None:
    """T (W x + b) is a convolution by 1x1 behind that of W."""
    algo = Warp(conv_net("none"), ALPHA, STEPS, False)
    params, x = start(algo, scatter=0.3), episode().query.x[0]
    out = x
    for block in (0, 1):
        name = f"trunk.blocks.{block}.conv"
        out = F.conv2d(out, params[f"{name}.weight"], params[f"{name}.bias"] + 0.5, stride=2, padding=1)
        out = F.conv2d(out, params[f"warp.{name}.weight"][:, :, None, None]).clamp(min=0)
    expected = out.mean((2, 3)) @ params["head.weight"].T + params["head.bias"]
    raised = {name: p + 0.5 if name.endswith("conv.bias") else p for name, p in params.items()}
    assert torch.allclose(algo.predict(raised, x)["class"], expected, atol=1e-12)


class Line(nn.Module):
    """A trunk of one linear layer without a bias."""

    features = 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.fixture
def line() -> Warp:
    net = Net.build(Line, {"y": Head("value", 1)}, "batch")
    net.module.double()
    return Warp(net, ALPHA, 1, False)


def test_a_step_moves_the_layers_weights_by_the_slope_times_t_t_transposed(line: Warp, points: Episode) -> None:
    params = start(line, scatter=0.5)
    support = Batch(points.support.x[0], {"y": points.support.y["y"][0]})
    before, after = (through(fast)["trunk.layer.weight"] for fast in line.adapt(params, support, 1))
    weight = before.clone().requires_grad_()
    outputs = support.x @ weight.T @ params["head.weight"].T + params["head.bias"]
    (slope,) = torch.autograd.grad((outputs - support.y["y"]).square().mean(), weight)
    matrix = params["warp.trunk.layer.weight"]
    assert torch.allclose(after, before - ALPHA * matrix @ matrix.T @ slope, atol=1e-14)
    assert not torch.allclose(after, before - ALPHA * slope, atol=1e-3)


def test_the_slope_by_the_maps_is_that_of_finite_differences(line: Warp, points: Episode) -> None:
    params, name, eps = start(line, scatter=0.5), "warp.trunk.layer.weight", 1e-6
    way = torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope, _ = line.meta_grad(params, points, VMAP)

    def loss(side: float) -> float:
        return float(line.meta_grad({**params, name: params[name] + side * eps * way}, points, VMAP)[1]["loss"])

    assert (loss(1) - loss(-1)) / (2 * eps) == pytest.approx(float((slope[name] * way).sum()), rel=1e-6)


def test_a_backbone_without_layers_is_refused_before_training(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"^algo=warp maps the outputs .* as algo=maml\.$"):
        Warp(linear_net, ALPHA, STEPS, False).init(torch.Generator())
