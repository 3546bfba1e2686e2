from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.relationnet import RelationNet
from metarun.backbones.cnn import CNN
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params


def classes(ways: int) -> dict[str, Head]:
    return {"class": Head("class", ways)}


def batch(x: Tensor, y: Tensor | list[int]) -> Batch:
    return Batch(x, {"class": torch.as_tensor(y)})


def scores(algo: Any, params: Params, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt(params, support, 0)
    return algo.predict(fast, x)["class"]


@pytest.fixture
def found(case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes."""
    return case("relationnet", "none")


def one_task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


def test_a_score_is_that_of_the_maps_of_class_and_query_stacked_in_one_convolution(found: Any) -> None:
    """Maps are of 4 channels and 2x2 here: both pools are written out as the greatest of them, then of one."""
    support, query = one_task(found)
    own = {name.removeprefix("relation."): p for name, p in found.params.items() if name.startswith("relation.")}
    maps, asked = (found.algo.net.maps(found.params, x) for x in (support.x, query.x))
    logits = scores(found.algo, found.params, support, query.x)
    wide = torch.cat([own["of_class.weight"], own["of_query.weight"]], 1)
    for q, n in ((0, 0), (1, 2)):
        pair = torch.cat([maps[support.y["class"] == n].mean(0), asked[q]])[None]
        x = F.group_norm(F.conv2d(pair, wide, padding=1), 8, own["norms.0.weight"], own["norms.0.bias"])
        x = F.conv2d(x.relu().amax((2, 3), keepdim=True), own["conv.weight"], padding=1)
        x = F.group_norm(x, 8, own["norms.1.weight"], own["norms.1.bias"]).relu()[0, :, 0, 0]
        hidden = (own["hidden.weight"] @ x + own["hidden.bias"]).relu()
        assert torch.allclose(logits[q, n], own["score.weight"][0] @ hidden + own["score.bias"][0], atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 3, 16, 40])
def test_maps_of_any_size_are_compared(side: int) -> None:
    keys: dict[str, Any] = {"pool": 1, "norm": "none", "dropout": 0.0, "flatten": False, "hidden": [7]}
    net = Net.build(lambda: CNN((1, side, side), channels=[3, 5], stride=2, **keys), classes(2), "batch")
    algo = RelationNet(net, "cross_entropy")
    params, x = algo.init(torch.Generator().manual_seed(0)), torch.rand(4, 1, side, side)
    logits = scores(algo, params, batch(x, [0, 1, 0, 1]), x[:3])
    assert net.channels == 5 and logits.shape == (3, 2) and logits.isfinite().all() and logits.std() > 0


def test_a_query_is_judged_alone_whatever_others_are_asked_beside_it(found: Any) -> None:
    support, query = one_task(found)
    together, alone = (scores(found.algo, found.params, support, x) for x in (query.x, query.x[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-12)


@pytest.mark.parametrize("unknown", [0, 2])
def test_squared_error_is_that_of_all_pairs_per_query(unknown: int, case: Callable[..., Any]) -> None:
    """Sung et al., equation 2, over the queries that have a target. The accuracy stays what it is."""
    found = case("relationnet", "none", loss="squared_error")
    task = one_task(found)
    y = task.query.y["class"].clone()
    y[:unknown] = -100
    asked = Episode(task.support, batch(task.query.x, y))
    slope, metrics = found.algo.meta_grad(found.params, tree_map(lambda t: t[None], asked), Parallel("vmap", 1))
    logits = scores(found.algo, found.params, task.support, task.query.x)[unknown:]
    wanted = F.one_hot(y[unknown:], 3).double()
    assert float(metrics["loss"]) == pytest.approx(float((logits.sigmoid() - wanted).square().sum(1).mean()))
    assert slope["relation.score.weight"].any()


def test_the_whole_is_learned_and_a_mapped_step_is_a_loops(
    case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case("relationnet", "batch", "support", loss="squared_error")
    (one, _), (other, _) = (
        found.algo.meta_grad(found.params, found.sample, p) for p in (Parallel("vmap", 6), Parallel("loop", 1))
    )
    assert close(one, other) and all(one[f"relation.{n}.weight"].any() for n in ("of_class", "of_query", "conv"))


def test_it_is_tested_with_other_ways_than_it_was_trained_with(found: Any) -> None:
    more = RelationNet(found.algo.net.testing(classes(5)), "cross_entropy")
    support = batch(one_task(found).support.x[:5], torch.arange(5))
    logits = scores(more, found.params, support, one_task(found).query.x)
    fewer = scores(found.algo, found.params, batch(support.x[:3], torch.arange(3)), one_task(found).query.x)
    assert torch.allclose(logits[:, :3], fewer, atol=1e-12)


@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["two classes absent", "all absent"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(y: list[int], found: Any) -> None:
    task = one_task(found)
    x, queries = (t[:3].clone().requires_grad_() for t in (task.support.x, task.query.x))
    logits = scores(found.algo, found.params, batch(x, y), queries)
    loss = judge(classes(3), {"class": logits}, {"class": torch.zeros(3, dtype=torch.long)})[0]
    assert loss.isfinite() and logits.argmax(-1).tolist() == [0, 0, 0]
    slopes = torch.autograd.grad(loss, [x, queries], materialize_grads=True)
    assert all(slope.isfinite().all() for slope in slopes)


def test_a_backbone_without_feature_maps_is_refused_before_training(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"^this backbone states no stages, .* Take conv4 or resnet12\.$"):
        RelationNet(Net.build(linear_net.make_trunk, classes(2), "batch"), "cross_entropy")


def test_tasks_of_values_are_refused(found: Any) -> None:
    algo = RelationNet(found.algo.net.testing({"angle": Head("value", 1)}), "cross_entropy")
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        algo.init(torch.Generator())
