from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.protonet import ProtoNet
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.maths.prototypes import prototypes, squared_distances
from metarun.types import Batch, Episode, Head, Params, learned


def classes(ways: int) -> dict[str, Head]:
    return {"class": Head("class", ways)}


def batch(x: Tensor, y: Tensor | list[int]) -> Batch:
    return Batch(x, {"class": torch.as_tensor(y)})


def scores(algo: Any, params: Params, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt(params, support, 0)
    return algo.predict(fast, x)["class"]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture
def plain(linear_net: Net) -> ProtoNet:
    """On features that are the inputs themselves, for two classes."""
    return ProtoNet(Net.build(linear_net.make_trunk, classes(2), "batch"), 0)


@pytest.fixture
def found(case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes."""
    return case("protonet", "none")


def one_task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


def test_logits_are_minus_the_squared_distances_to_the_class_means(plain: ProtoNet) -> None:
    """Class 0 has 0 and 2, so 1; class 1 has 10. From 4 that is 9 and 36, and from 10: 81 and 0."""
    support = batch(torch.tensor([[0.0, 3], [10, 3], [2, 3]]), [0, 1, 0])
    logits = scores(plain, {}, support, torch.tensor([[4.0, 3], [10, 3]]))
    assert torch.allclose(logits, torch.tensor([[-9.0, -36], [-81, 0]]), atol=1e-5)


def test_rows_of_no_class_move_the_means_by_how_near_they_are(linear_net: Net) -> None:
    """Midway between 0 and 4 a row counts half for each class: the means are (0 + 2/2) / 1.5 and (4 + 2/2) / 1.5."""
    net = Net.build(linear_net.make_trunk, classes(2), "batch")
    support = batch(torch.tensor([[0.0, 0], [4, 0], [2, 0]]), [0, 1, -100])
    means = {steps: next(ProtoNet(net, steps).adapt({}, support, 0))["prototypes.means"] for steps in (0, 1)}
    assert means[0][:, 0].tolist() == [0, 4]
    assert torch.allclose(means[1][:, 0], torch.tensor([1 / 1.5, 5 / 1.5]))


def test_unlabelled_images_help_where_shots_are_noisy(linear_net: Net) -> None:
    """Two clouds, one shot of each and twenty images more: the refined means are nearer to the true ones."""
    g = torch.Generator().manual_seed(0)
    true = torch.tensor([[-2.0, 0], [2, 0]])
    net, far = Net.build(linear_net.make_trunk, classes(2), "batch"), []
    for _ in range(20):
        x = true.repeat(11, 1) + torch.randn(22, 2, generator=g)
        support = batch(x, [0, 1] + [-100] * 20)
        phi = [next(ProtoNet(net, steps).adapt({}, support, 0))["prototypes.means"] for steps in (0, 1)]
        far.append([(means - true).norm() for means in phi])
    plain, moved = torch.tensor(far).mean(0)
    assert moved < plain / 2


def test_squared_distances_are_those_of_their_definition() -> None:
    x, c = random(7, 4), random(5, 4) + 3
    assert torch.allclose(squared_distances(x, c), ((x[:, None] - c) ** 2).sum(-1), atol=1e-12)


def test_there_is_one_phi_and_no_output_layer(found: Any) -> None:
    assert learned(found.params).keys() == {n for n in found.algo.net.init(torch.Generator()) if "trunk" in n}
    assert len(list(found.algo.adapt(found.params, one_task(found).support, 5))) == 1


def test_it_is_tested_with_other_ways_than_it_was_trained_with(found: Any) -> None:
    more = ProtoNet(found.algo.net.testing(classes(5)), 0)
    x = one_task(found).support.x
    assert scores(more, found.params, batch(x[:5], torch.arange(5)), x).argmax(-1)[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["one class absent", "all absent"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(plain: ProtoNet, y: list[int]) -> None:
    """Though the queries lie at the origin, where the mean over no row would be."""
    x = torch.tensor([[5.0, 5], [6, 6], [0, 0]], requires_grad=True)
    queries = torch.zeros(2, 2, requires_grad=True)
    logits = scores(plain, {}, batch(x, y), queries)
    loss = judge(classes(2), {"class": logits}, {"class": torch.zeros(2, dtype=torch.long)})[0]
    assert loss.isfinite() and logits.argmax(-1).tolist() == [0, 0]
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss, [x, queries]))


def test_prototypes_are_differentiated_exactly() -> None:
    x = random(5, 2).requires_grad_()
    y = torch.tensor([0, 1, 1, -100, 0])
    assert torch.autograd.gradcheck(lambda x: prototypes(x, y, 3)[0], (x,))


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_meta_gradient_is_that_of_a_naive_loop(
    norm_stats: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    """Features are the logits of an output layer that is the identity."""
    found = case("protonet", "batch", norm_stats)
    leaves = {name: p.clone().requires_grad_() for name, p in found.params.items()}
    layer = {"head.weight": torch.eye(4, dtype=torch.float64), "head.bias": torch.zeros(4, dtype=torch.float64)}
    losses = []
    for t in range(len(found.sample.support.x)):
        support, query = tree_map(lambda leaf, t=t: leaf[t], found.sample)
        source = support.x if norm_stats == "support" else query.x
        seen, asked = (plain_logits({**leaves, **layer}, x, s) for x, s in ((support.x, support.x), (query.x, source)))
        means = torch.stack([seen[support.y["class"] == n].mean(0) for n in range(3)])
        losses.append(F.cross_entropy(-(torch.cdist(asked, means) ** 2), query.y["class"]))
    loss = torch.stack(losses).mean()
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    algo_slope, metrics = found.algo.meta_grad(found.params, found.sample, Parallel("vmap", 4))
    assert close(algo_slope, slope, 1e-9) and torch.allclose(metrics["loss"], loss.detach())


@pytest.mark.parametrize(
    "heads", [{"angle": Head("value", 1)}, {"a": Head("class", 2), "b": Head("class", 2)}], ids=["value", "two"]
)
def test_other_tasks_than_those_of_one_class_head_are_refused(linear_net: Net, heads: dict[str, Head]) -> None:
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        ProtoNet(Net.build(linear_net.make_trunk, heads, "batch"), 0).init(torch.Generator())
