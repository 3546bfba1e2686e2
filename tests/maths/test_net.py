from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.cli import CONF
from metarun.cli.help import comment
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.inner import last
from metarun.maths.net import SUPPORT, Net
from metarun.types import Batch, Episode, Head, Params, learned


def start(net: Net, seed: int = 0) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(seed)).items()}


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_network_is_a_pure_function_of_its_parameters(
    norm: str, conv_net: Callable[..., Net], episode: Callable[..., Episode], plain_logits: Callable[..., Tensor]
) -> None:
    net, x = conv_net(norm), episode().query.x[0]
    for seed in (0, 1):
        params = start(net, seed)
        assert torch.allclose(net(params, x)["class"], plain_logits(params, x, x), atol=1e-12)


def test_support_statistics_normalise_every_layer(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], plain_logits: Callable[..., Tensor]
) -> None:
    net, (support, query) = conv_net("batch", "support"), tree_map(lambda t: t[0], episode())
    params = start(net)
    given = net.given(params, support)
    assert given[SUPPORT] is support.x and SUPPORT not in params
    assert torch.allclose(net(given, query.x)["class"], plain_logits(params, query.x, support.x), atol=1e-12)


def test_batch_statistics_carry_nothing_of_the_support(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net("batch", "batch")
    params = start(net)
    assert net.given(params, tree_map(lambda t: t[0], episode().support)) is params


def predictions(found: Any, queries: Tensor, support: Batch) -> Tensor:
    fast = last(found.tested.adapt(found.params, support, 2))
    return found.tested.predict(fast, queries)["class"][0]


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_only_transductive_predictions_depend_on_the_other_queries(
    algo_name: str, norm_stats: str, case: Callable[..., Any]
) -> None:
    """With batch statistics all do; else those of a learner that says so in its description."""
    found = case(algo_name, "batch", norm_stats)
    says_so = "transductive" in comment(CONF / "algo" / f"{algo_name}.yaml")
    support, query = tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator())))
    others = torch.cat([query.x[:1], query.x[1:] * 0.5])
    one, other = (predictions(found, x, support) for x in (query.x, others))
    assert torch.allclose(one, other, atol=1e-12) == (norm_stats == "support" and not says_so)
    alone = predictions(found, query.x[:1], support)  # a single image can be predicted, too
    assert alone.isfinite().all() and (norm_stats == "batch" or says_so or torch.allclose(one, alone, atol=1e-12))


def test_support_statistics_are_differentiated_through(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    """By a parameter below the batch norm, which moves the statistics, against central differences."""
    net, (support, query) = conv_net("batch", "support"), tree_map(lambda t: t[0], episode())
    params, name = start(net), "trunk.blocks.0.conv.weight"

    def loss(weight: Tensor) -> Tensor:
        return net.loss(net.given({**params, name: weight}, support), query)

    assert torch.autograd.gradcheck(loss, (params[name].clone().requires_grad_(),), eps=1e-6, atol=1e-7)


def test_heads_read_the_output_layer_side_by_side(conv_net: Callable[..., Net]) -> None:
    net = Net.build(conv_net().make_trunk, {"digit": Head("class", 2), "angle": Head("value", 1)}, "batch")
    outputs = net.read(torch.arange(6.0).view(2, 3))
    assert outputs["digit"].tolist() == [[0, 1], [3, 4]] and outputs["angle"].tolist() == [[2], [5]]
    assert start(net)["head.weight"].shape == (3, 4)


def test_a_seed_decides_the_parameters_and_leaves_the_global_generator_alone(conv_net: Callable[..., Net]) -> None:
    net = conv_net()
    state = torch.get_rng_state()
    one, same, other = (start(net, seed)["head.weight"] for seed in (3, 3, 4))
    net.testing(net.heads)
    assert one.equal(same) and not one.equal(other)
    assert torch.get_rng_state().equal(state)


def test_without_dropout_in_evaluation(conv_net: Callable[..., Net], episode: Callable[..., Episode]) -> None:
    net, x = conv_net("none", "batch", dropout=0.5), episode().query.x[0]
    params = start(net)
    still = net.testing(net.heads)
    still.module.double()
    assert not net(params, x)["class"].equal(net(params, x)["class"])
    assert still(params, x)["class"].equal(still(params, x)["class"])


@pytest.mark.parametrize(("norm", "count"), [("batch", 4), ("group", 4), ("layer", 4), ("none", 0)])
def test_norm_names_are_those_of_the_norms_parameters(norm: str, count: int, conv_net: Callable[..., Net]) -> None:
    net = conv_net(norm)
    assert len(net.norm_names) == count and net.norm_names <= start(net).keys()
    assert all(".norm." in name for name in net.norm_names)


@pytest.mark.parametrize("name", ["maml", "mtl"])
@pytest.mark.parametrize("parallel", [Parallel("loop", 1), Parallel("vmap", 3)], ids=str)
def test_half_precision_rounds_a_meta_gradient_and_no_more(
    case: Callable[..., Any], name: str, parallel: Parallel
) -> None:
    """Inner steps are taken in full: the direction stays, though MAML's step of 0.4 magnifies what is rounded."""
    found = case(name)
    params, sample = (
        tree_map(lambda t: t.float() if t.is_floating_point() else t, p) for p in (found.params, found.sample)
    )
    net = replace(found.algo.net, module=deepcopy(found.algo.net.module).float())
    slopes = []
    for half in (False, True):
        algo = replace(found.algo, net=replace(net, half=half))
        slope, metrics = algo.meta_grad(params, sample, parallel)
        assert all(s.dtype == torch.float32 for s in (*slope.values(), *metrics.values()))
        slopes.append(torch.cat([slope[n].flatten() for n in params]))
    assert not torch.equal(*slopes)
    assert torch.cosine_similarity(*slopes, dim=0) > 0.98
    assert slopes[1].norm() == pytest.approx(float(slopes[0].norm()), rel=0.02)


def test_an_output_layer_for_other_heads_is_refused_in_one_line(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    tested = conv_net().testing({"class": Head("class", 5)})
    assert conv_net().fits and not tested.fits
    with pytest.raises(UserError, match=r"is for class \(3\), and the tasks to test have class \(5\). Make train.ways"):
        tested(start(tested), episode().query.x[0])


def test_names_are_found_by_pattern_and_the_trunk_is_what_heads_share(conv_net: Callable[..., Net]) -> None:
    net = conv_net()
    params = {**start(net), "memory.trunk.x": torch.zeros(1)}
    assert net.names(params, "head.*") == ["head.weight", "head.bias"]
    assert set(net.shared(params)) == learned(params).keys() - {"head.weight", "head.bias"}
    assert start(net).keys() - net.init(torch.Generator(), head=False).keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_feature_maps_are_what_the_trunk_pools(
    norm_stats: str, conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net, task = conv_net("batch", norm_stats), tree_map(lambda t: t[0], episode())
    given = net.given(start(net), task.support)
    maps = net.maps(given, task.query.x)
    assert maps.ndim == 4
    assert torch.allclose(maps.mean((2, 3)), net.features(given, task.query.x), atol=1e-12)


def test_statistics_given_by_name_are_used(conv_net: Callable[..., Net], episode: Callable[..., Episode]) -> None:
    """As `given` does with those of the support set."""
    net, task = conv_net("batch", "support"), tree_map(lambda t: t[0], episode())
    params = start(net)
    by_name = {**params, **net.statistics(params, task.support.x)}
    expected = net(net.given(params, task.support), task.query.x)["class"]
    assert torch.allclose(net(by_name, task.query.x)["class"], expected, atol=1e-12)


class Frozen(nn.Module):
    """A trunk whose first layer is not to be learned."""

    features = 4

    def __init__(self, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 4, 3), norm(4), nn.Linear(4, 4)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).mean((2, 3)))


def test_frozen_weights_are_kept_as_memory_and_used(episode: Callable[..., Episode]) -> None:
    """So they are drawn by the seed, saved, and reach the device with all others."""
    net = Net.build(Frozen, {"class": Head("class", 3)}, "batch")
    params, x = net.init(torch.Generator().manual_seed(0)), episode().query.x[0].float()
    assert {n for n in params if n not in learned(params)} == {"memory.trunk.first.weight", "memory.trunk.first.bias"}
    changed = {**params, "memory.trunk.first.bias": params["memory.trunk.first.bias"] + 1}
    assert not net(changed, x)["class"].equal(net(params, x)["class"])


def test_running_statistics_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"norm is a BatchNorm2d, whose running statistics .* Take metarun.maths.norm"):
        Net.build(partial(Frozen, nn.BatchNorm2d), {"class": Head("class", 3)}, "batch")
