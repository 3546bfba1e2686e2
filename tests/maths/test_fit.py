from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from metarun.maths.fit import HEAD, fit_all, fit_head, new_head, read_head, unit_features
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

LR = 0.7
Fit = Callable[[Net, Params, Batch, float, int], Iterator[Params]]


@pytest.fixture
def support(episode: Callable[..., Episode]) -> Batch:
    return tree_map(lambda t: t[0], episode().support)


def trained(net: Net) -> Params:
    """Parameters whose output layer is of another size, as training on other classes leaves them."""
    other = net.with_heads({"training": Head("class", 7)})
    return {name: p.double() for name, p in other.init(torch.Generator().manual_seed(0)).items()}


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_first_step_of_a_new_head_is_that_of_softmax_regression_from_zero(
    norm_stats: str, conv_net: Callable[..., Net], support: Batch
) -> None:
    """From zero all p = 1/N, so W₁ = −α/B Σ (1/N − onehot) fᵀ and b₁ = −α/B Σ (1/N − onehot), f of length 1."""
    net = conv_net("batch", norm_stats)
    params = trained(net)
    features = F.normalize(net.features(params, support.x))
    error = 1 / 3 - F.one_hot(support.y["class"], 3).double()
    before, after = fit_head(net, params, support, LR, 1)
    assert not before["head.weight"].any() and not before["head.bias"].any()
    assert torch.allclose(after["head.weight"], -LR * error.T @ features / len(support.x), atol=1e-12)
    assert torch.allclose(after["head.bias"], -LR * error.mean(0), atol=1e-12)


def test_a_fitted_head_is_what_torchs_sgd_arrives_at(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net()
    params = trained(net)
    features = F.normalize(net.features(params, support.x)).detach()
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(layer(features), support.y["class"]).backward()
        optimizer.step()
    fast = last(fit_head(net, params, support, LR, 5))
    assert torch.allclose(fast["head.weight"], layer.weight, atol=1e-12)
    assert torch.allclose(fast["head.bias"], layer.bias, atol=1e-12)


def test_fitting_the_head_leaves_the_trunk_as_it_is(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net()
    params = trained(net)
    fast = last(fit_head(net, params, support, LR, 5))
    assert all(fast[name] is p for name, p in params.items() if name not in HEAD)


def test_fitting_everything_moves_the_trunk(conv_net: Callable[..., Net], support: Batch) -> None:
    """The first step moves the head alone: from a head of zeros the trunk has no gradient."""
    net = conv_net("none")
    params = trained(net)
    _, first, second = fit_all(net, params, support, LR, 2)
    trunk = [name for name in params if name not in HEAD]
    assert all(first[name].equal(params[name]) for name in trunk)
    assert not any(second[name].equal(params[name]) for name in trunk)
    assert first["head.weight"].any()


@pytest.mark.parametrize("fit", [fit_head, fit_all])
def test_fitting_lowers_the_support_loss(fit: Fit, conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net()

    def loss(fast: Params) -> float:
        outputs = read_head(net, fast, unit_features(net, fast, support.x))
        return float(F.cross_entropy(outputs["class"], support.y["class"]))

    losses = [loss(fast) for fast in fit(net, trained(net), support, 1.0, 20)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_features_are_of_length_one_whatever_the_trunks_scale(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net("none")
    params = trained(net)
    features = unit_features(net, params, support.x)
    assert torch.allclose(features.norm(dim=-1), torch.ones(6, dtype=torch.float64))
    larger = {**params, **{n: p * 10 for n, p in params.items() if n.startswith("trunk.blocks.1.conv")}}
    assert torch.allclose(unit_features(net, larger, support.x), features)


def test_a_new_head_fits_the_tasks_heads(conv_net: Callable[..., Net]) -> None:
    params = trained(conv_net())
    head = new_head(params, {"digit": Head("class", 2), "angle": Head("value", 3)})
    assert head["head.weight"].shape == (5, 4) and head["head.bias"].shape == (5,)
    assert params["head.weight"].shape == (7, 4)
