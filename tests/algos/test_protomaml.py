from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.protomaml import ProtoMAML
from metarun.algos.protonet import ProtoNet
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

ALPHA, STEPS = 0.05, 2
MAPPINGS = [Parallel("vmap", 4), Parallel("loop", 1)]


def learner(net: Net, first_order: bool = False, steps: int = STEPS) -> ProtoMAML:
    return ProtoMAML(net, ALPHA, steps, first_order)


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0), head=False).items()}


def first(tasks: Episode) -> Episode:
    return tree_map(lambda t: t[0], tasks)


def test_without_a_step_it_is_protonet(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], close: Callable[..., bool]
) -> None:
    """−‖f − c‖² = 2 c·f − ‖c‖² − ‖f‖², and what all classes share changes neither loss nor choice."""
    net, tasks = conv_net(), episode()
    params = start(net)
    expected, scores = ProtoNet(net, 0).meta_grad(params, tasks, MAPPINGS[0])
    slope, metrics = learner(net, steps=0).meta_grad(params, tasks, MAPPINGS[0])
    assert close(slope, expected) and close(metrics, scores)


def test_the_first_step_is_that_of_an_output_layer_which_happens_to_be_the_prototypes(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], plain_logits: Callable[..., Tensor]
) -> None:
    """Each entry moves by its own slope: a trunk that moves takes no prototypes along."""
    net, (support, _) = conv_net(), first(episode())
    zero, one = learner(net).adapt(start(net), support, 1)
    leaves = {name: p.clone().requires_grad_() for name, p in zero.items()}
    loss = F.cross_entropy(plain_logits(leaves, support.x, support.x), support.y["class"])
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    assert all(torch.allclose(one[name], p - ALPHA * slope[name], atol=1e-12) for name, p in zero.items())


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("first_order", [True, False])
def test_the_meta_gradient_runs_through_the_prototypes_as_in_a_naive_double_loop(
    first_order: bool,
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
    close: Callable[..., bool],
) -> None:
    net, tasks = conv_net("batch", norm_stats), episode()
    params = start(net)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    identity = {"head.weight": torch.eye(4, dtype=torch.float64), "head.bias": torch.zeros(4, dtype=torch.float64)}
    losses = []
    for t in range(len(tasks.support.x)):
        x, y = tasks.support.x[t], tasks.support.y["class"][t]
        seen = plain_logits({**leaves, **identity}, x, x)
        means = torch.stack([seen[y == n].mean(0) for n in range(3)])
        fast = {**leaves, "head.weight": 2 * means, "head.bias": -(means**2).sum(1)}
        for _ in range(STEPS):
            here = {name: p * 1 for name, p in fast.items()}  # nodes of their own: partial derivatives
            loss = F.cross_entropy(plain_logits(here, x, x), y)
            slopes = torch.autograd.grad(loss, list(here.values()), create_graph=not first_order)
            fast = {name: p - ALPHA * g for (name, p), g in zip(fast.items(), slopes)}
        source = x if norm_stats == "support" else tasks.query.x[t]
        losses.append(F.cross_entropy(plain_logits(fast, tasks.query.x[t], source), tasks.query.y["class"][t]))
    mean = torch.stack(losses).mean()
    expected = dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values()))))
    for parallel in MAPPINGS:
        slope, metrics = learner(net, first_order).meta_grad(params, tasks, parallel)
        assert close(slope, expected, 1e-9) and torch.allclose(metrics["loss"], mean.detach())


def test_it_is_tested_with_other_ways_than_it_was_trained_with(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net("none")
    more, (support, query) = learner(net.testing({"class": Head("class", 5)})), first(episode(ways=5))
    for fast in more.adapt(start(net), support, 2):
        assert more.predict(fast, query.x)["class"].shape == (10, 5)


@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(
    parallel: Parallel, conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net, tasks = conv_net("none"), episode()
    gap = Episode(*(Batch(b.x, {"class": b.y["class"].masked_fill(b.y["class"] == 1, -100)}) for b in tasks))
    support, query = first(gap)
    *_, fast = learner(net).adapt(start(net), support, 3)
    logits = learner(net).predict(fast, query.x)["class"]
    assert logits.isfinite().all() and not (logits.argmax(-1) == 1).any()
    slope, metrics = learner(net).meta_grad(start(net), gap, parallel)
    assert all(value.isfinite().all() for value in (*slope.values(), *metrics.values()))


@pytest.mark.parametrize(
    "heads", [{"angle": Head("value", 1)}, {"a": Head("class", 2), "b": Head("class", 2)}], ids=["value", "two"]
)
def test_other_tasks_than_those_of_one_class_head_are_refused(linear_net: Net, heads: dict[str, Head]) -> None:
    net: Any = Net.build(linear_net.make_trunk, heads, "batch")
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        learner(net).init(torch.Generator())
