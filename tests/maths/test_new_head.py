from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.maths.new_head import LAYER, blank, fit, kept, predict, seen
from metarun.types import Batch, Episode, Head, Params

LR = 0.7
TASK = {"class": Head("class", 3)}


@pytest.fixture
def support(episode: Callable[..., Episode]) -> Batch:
    return tree_map(lambda t: t[0], episode().support)


def trained(net: Net) -> tuple[Net, Params]:
    """The network for tasks of three classes, and parameters whose output layer training on seven has left."""
    other = Net.build(net.make_trunk, {"training": Head("class", 7)}, net.norm_stats)
    params = other.init(torch.Generator().manual_seed(0))
    tested = other.testing(TASK)
    tested.module.double()
    return tested, {name: p.double() for name, p in params.items()}


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_first_step_of_a_new_head_is_that_of_softmax_regression_from_zero(
    norm_stats: str, conv_net: Callable[..., Net], support: Batch
) -> None:
    """From zero all p = 1/N, so W₁ = −α/B Σ (1/N − onehot) fᵀ and b₁ = −α/B Σ (1/N − onehot), f of length 1."""
    net = conv_net("batch", norm_stats)
    net, params = trained(net)
    features = F.normalize(net.features(params, support.x))
    error = 1 / 3 - F.one_hot(support.y["class"], 3).double()
    before, after = fit(net, params, support, LR, 1, "head")
    assert not before["head.weight"].any() and not before["head.bias"].any()
    assert torch.allclose(after["head.weight"], -LR * error.T @ features / len(support.x), atol=1e-12)
    assert torch.allclose(after["head.bias"], -LR * error.mean(0), atol=1e-12)


@pytest.mark.parametrize("moving", ["head", "all"])
def test_without_a_support_set_the_heads_stay_what_they_are(moving: Any, conv_net: Callable[..., Net]) -> None:
    """Also beneath vmap, where batch norm takes no empty batch."""
    net = conv_net()
    params = {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}
    nothing = Batch(torch.zeros(2, 0, 1, 8, 8).double(), {"class": torch.zeros(2, 0).long()})

    def path(x: torch.Tensor, y: torch.Tensor) -> list[Params]:
        return list(fit(net, params, Batch(x, {"class": y}), LR, 5, moving))

    (found,) = torch.vmap(path, out_dims=None)(nothing.x, nothing.y["class"])
    assert all(found[name] is p for name, p in params.items())


def test_a_fitted_head_is_what_torchs_sgd_arrives_at(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net()
    net, params = trained(net)
    features = F.normalize(net.features(params, support.x)).detach()
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(layer(features), support.y["class"]).backward()
        optimizer.step()
    fast = last(fit(net, params, support, LR, 5, "head"))
    assert torch.allclose(fast["head.weight"], layer.weight, atol=1e-12)
    assert torch.allclose(fast["head.bias"], layer.bias, atol=1e-12)


def test_fitting_the_head_leaves_the_trunk_as_it_is(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net()
    net, params = trained(net)
    fast = last(fit(net, params, support, LR, 5, "head"))
    assert all(fast[name] is p for name, p in params.items() if name not in LAYER)


def test_fitting_everything_moves_the_trunk(conv_net: Callable[..., Net], support: Batch) -> None:
    """The first step moves the head alone: from a head of zeros the trunk has no gradient."""
    net = conv_net("none")
    net, params = trained(net)
    _, first, second = fit(net, params, support, LR, 2, "all")
    trunk = [name for name in params if name not in LAYER]
    assert all(first[name].equal(params[name]) for name in trunk)
    assert not any(second[name].equal(params[name]) for name in trunk)
    assert first["head.weight"].any()


@pytest.mark.parametrize("moving", ["head", "all"])
def test_fitting_lowers_the_support_loss(moving: Any, conv_net: Callable[..., Net], support: Batch) -> None:
    net, params = trained(conv_net())

    def loss(fast: Params) -> float:
        return float(F.cross_entropy(predict(net, fast, support.x)["class"], support.y["class"]))

    losses = [loss(fast) for fast in fit(net, params, support, 0.3, 20, moving)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_features_are_of_length_one_whatever_the_trunks_scale(conv_net: Callable[..., Net], support: Batch) -> None:
    net = conv_net("none")
    net, params = trained(net)
    features = seen(net, params, support.x)
    assert torch.allclose(features.norm(dim=-1), torch.ones(6, dtype=torch.float64))
    larger = {**params, **{n: p * 10 for n, p in params.items() if n.startswith("trunk.blocks.1.conv")}}
    assert torch.allclose(seen(net, larger, support.x), features)


def test_a_new_head_fits_the_tasks_heads(conv_net: Callable[..., Net]) -> None:
    net, params = trained(conv_net())
    several = net.testing({"digit": Head("class", 2), "angle": Head("value", 3)})
    head = blank(several, params)
    assert head["head.weight"].shape == (5, 4) and head["head.bias"].shape == (5,)
    assert params["head.weight"].shape == (7, 4)


def test_heads_that_were_trained_are_kept_and_read_the_features_they_were_trained_on(
    conv_net: Callable[..., Net], support: Batch
) -> None:
    net = conv_net()
    params = {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}
    (start,) = fit(net, params, support, LR, 0, "head")
    assert start["head.weight"] is params["head.weight"]
    assert predict(net, start, support.x)["class"].equal(net(params, support.x)["class"])


@pytest.fixture
def partly(conv_net: Callable[..., Net]) -> tuple[Net, Params, Batch]:
    """Trained on nine classes and two values; the task has three classes dealt anew, and the values turned round."""
    trained = {"class": Head("class", 9), "slant": Head("value", 1), "pen": Head("value", 2)}
    task = {"pen": Head("value", 2, gaps=True), "class": Head("class", 3, fresh=True), "slant": Head("value", 1)}
    other = Net.build(conv_net().make_trunk, trained, "batch")
    params = {name: p.double() for name, p in other.init(torch.Generator().manual_seed(0)).items()}
    net = other.testing(task)
    net.module.double()
    generator = torch.Generator().manual_seed(1)
    x, pen, slant = (
        torch.randn(6, *shape, generator=generator, dtype=torch.float64) for shape in ((1, 8, 8), (2,), (1,))
    )
    return net, params, Batch(x, {"pen": pen, "class": torch.arange(6) % 3, "slant": slant})


@pytest.mark.parametrize("moving", ["head", "all"])
def test_of_heads_that_were_partly_trained_those_begin_as_they_were_and_the_others_at_zero(
    moving: Any, partly: tuple[Net, Params, Batch]
) -> None:
    """Also for rows that the fit did not see."""
    net, params, support = partly
    assert kept(net) == {"slant", "pen"}
    x = torch.cat([support.x, 3 * support.x.flip(0)])
    found = predict(net, next(fit(net, params, support, LR, 1, moving)), x)
    outputs = net.features(params, x) @ params["head.weight"].T + params["head.bias"]
    assert torch.allclose(found["slant"], outputs[:, 9:10]) and torch.allclose(found["pen"], outputs[:, 10:])
    assert not found["class"].any()


def test_one_step_size_suits_heads_that_are_kept_and_new_ones_whatever_the_trunks_scale(
    partly: tuple[Net, Params, Batch],
) -> None:
    """A step of the classes is that of a new layer alone. Values have a Hessian 2/B Σ ffᵀ of trace 2 by what they read,
    so that at a third of a rate of 1 each head's loss goes down however long the features are."""
    net, params, support = partly
    norms = {n: p * 30 for n, p in params.items() if "norm" in n}
    for scaled_up in (params, {**params, **norms}):
        path = list(fit(net, scaled_up, support, 1.0, 20, "head"))
        unit = F.normalize(net.features(scaled_up, support.x))
        error = 1 / 3 - F.one_hot(support.y["class"], 3).double()
        assert torch.allclose(path[1]["head.weight"][2:5], -error.T @ unit / 6 / 3, atol=1e-12)
        for name in ("slant", "pen"):
            outputs = [predict(net, fast, support.x)[name] for fast in path]
            errors = [float((output - support.y[name]).square().mean()) for output in outputs]
            assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_without_a_head_of_the_task_in_training_all_are_new(conv_net: Callable[..., Net]) -> None:
    """Another size, another kind, or classes that are dealt anew are another head."""
    trained = {"a": Head("class", 3), "b": Head("value", 1), "c": Head("class", 5)}
    net = Net.build(conv_net().make_trunk, trained, "batch")
    assert not kept(net.testing({"a": Head("class", 3, fresh=True), "b": Head("value", 2), "c": Head("value", 5)}))
    assert kept(net.testing({"a": Head("class", 3), "d": Head("value", 1)})) == {"a"}
