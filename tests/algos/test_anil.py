from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.anil import ANIL
from metarun.algos.maml import MAML
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

ALPHA, STEPS = 0.3, 2
VMAP = Parallel("vmap", 2)
LAYER = {"head.weight", "head.bias"}


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def test_the_trunk_stays_put_and_the_output_layer_moves(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net()
    params = start(net)
    support, _ = tree_map(lambda t: t[0], episode())
    path = list(ANIL(net, ALPHA, STEPS, False).adapt(params, support, 3))
    for before, fast in pairwise(path):
        assert {name for name in params if fast[name] is not before[name]} == LAYER
        assert not any(fast[name].equal(before[name]) for name in LAYER)


def naive(params: Params, tasks: Episode, plain_logits: Callable[..., Tensor], algo: ANIL) -> tuple[Params, float]:
    """Two loops; the whole network runs anew in every inner step."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    losses = []
    for t in range(len(tasks.support.x)):
        x, y = tasks.support.x[t], tasks.support.y["class"][t]
        fast = dict(leaves)
        for _ in range(algo.inner_steps):
            layer = {name: fast[name] for name in LAYER}
            loss = F.cross_entropy(plain_logits(fast, x, x), y)
            slopes = torch.autograd.grad(loss, list(layer.values()), create_graph=not algo.first_order)
            fast |= {name: p - ALPHA * g for (name, p), g in zip(layer.items(), slopes)}
        source = x if algo.net.norm_stats == "support" else tasks.query.x[t]
        losses.append(F.cross_entropy(plain_logits(fast, tasks.query.x[t], source), tasks.query.y["class"][t]))
    mean = torch.stack(losses).mean()
    return dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())))), float(mean.detach())


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("first_order", [True, False])
def test_the_meta_gradient_is_that_of_a_naive_double_loop(
    first_order: bool,
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
    close: Callable[..., bool],
) -> None:
    net = conv_net("batch", norm_stats)
    algo, params = ANIL(net, ALPHA, STEPS, first_order), start(net)
    expected, loss = naive(params, episode(), plain_logits, algo)
    for parallel in (VMAP, Parallel("loop", 1)):
        slope, metrics = algo.meta_grad(params, episode(), parallel)
        assert close(slope, expected, 1e-9) and float(metrics["loss"]) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("first_order", [True, False])
def test_on_a_trunk_without_parameters_it_is_maml(
    first_order: bool, linear_net: Net, points: Episode, close: Callable[..., bool]
) -> None:
    params = start(linear_net)
    maml = MAML(linear_net, ALPHA, STEPS, first_order, inner_loss="mean", adapt_norm=True, remat=False)
    expected, scores = maml.meta_grad(params, points, VMAP)
    slope, metrics = ANIL(linear_net, ALPHA, STEPS, first_order).meta_grad(params, points, VMAP)
    assert close(slope, expected, 1e-12) and close(metrics, scores, 1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_trunk_sees_the_support_set_once_however_many_steps_there_are(
    steps: int, conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net, seen = conv_net(), []
    handle = net.module.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    support, _ = tree_map(lambda t: t[0], episode())
    list(ANIL(net, ALPHA, steps, False).adapt(start(net), support, steps))
    handle.remove()
    assert seen == [len(support.x)]


def test_other_ways_in_the_test_than_in_training_are_refused_in_one_line(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net()
    more = ANIL(net.testing({"class": Head("class", 5)}), ALPHA, STEPS, False)
    batch: Any = tree_map(lambda t: t[0], episode(ways=5).support)
    with pytest.raises(UserError, match=r"class \(3\), and the tasks to test have class \(5\)\. Make train\.ways"):
        list(more.adapt(start(net), Batch(batch.x, batch.y), 1))
