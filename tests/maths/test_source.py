from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from metarun.backbones.cnn import CNN
from metarun.errors import UserError
from metarun.maths.closed_head import logistic
from metarun.maths.net import Net
from metarun.maths.source import Pretrained, begun, on_features, told_by, with_teacher
from metarun.types import Batch, Head, learned, memory

SHAPE = (1, 8, 8)
CLASSES = {"class": Head("class", 3)}


def network(seed: int = 1, **keys: Any) -> Net:
    keys = {"channels": [3, 4], "stride": 2, "pool": 1, "norm": "batch", "dropout": 0.5, "flatten": False, **keys}
    return Net.build(partial(CNN, SHAPE, hidden=[], **keys), CLASSES, "batch")


def left(net: Net, known: bool = True) -> Pretrained:
    """What a run that drew its weights by another seed has left."""
    params = net.init(torch.Generator().manual_seed(7), head=known)
    net = net.testing(CLASSES)
    return Pretrained(net if known else replace(net, trained={}), params, known, SHAPE)


def drawn(net: Net) -> dict[str, torch.Tensor]:
    return net.init(torch.Generator().manual_seed(1))


def test_features_are_the_sources_trunk_which_nothing_moves_under_a_layer_of_ones_own() -> None:
    net, source = network(), left(network())
    params, fresh = on_features(net, drawn(net), source), drawn(net)
    assert learned(params).keys() == {"head.weight", "head.bias"}
    assert all(params[name] is fresh[name] or params[name].equal(fresh[name]) for name in learned(params))
    assert {n: p for n, p in source.params.items() if n.startswith("trunk.")}.keys() == {
        name.removeprefix("memory.") for name in memory(params)
    }
    assert all(p.equal(source.params[name.removeprefix("memory.")]) for name, p in memory(params).items())


@pytest.mark.parametrize("known", [True, False])
def test_a_start_takes_the_output_layer_too_only_where_its_classes_are_these(known: bool) -> None:
    net, source = network(), left(network(), known)
    params, fresh = begun(net, drawn(net), source), drawn(net)
    assert params.keys() == fresh.keys()
    assert all(params[name].equal(p) for name, p in source.params.items())
    assert params["head.weight"].equal(fresh["head.weight"]) is not known


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"channels": [3, 5]}, r"trunk\.blocks\.1\.conv\.weight is \(5, 3, 3, 3\) there and \(4, 3, 3, 3\) here"),
        ({"channels": [3, 4, 4]}, r"trunk\.blocks\.2\.conv\.weight is \(4, 4, 3, 3\) there and absent here"),
        ({"stride": 1, "pool": 2}, "its layers have the same sizes, and make other features"),
    ],
    ids=str,
)
def test_the_trunk_of_another_network_is_refused(keys: dict[str, Any], told: str) -> None:
    net, source = network(), left(network(**keys))
    for taken in (begun, on_features):
        with pytest.raises(UserError, match=told):
            taken(net, drawn(net), source)


def test_dropout_makes_no_other_network() -> None:
    net = network(dropout=0.0)
    assert begun(net, drawn(net), left(network(dropout=0.9)))


def test_a_teacher_uses_its_own_layer_where_it_has_one_and_logistic_regression_elsewhere(
    episode: Callable[..., Any],
) -> None:
    support: Batch = tree_map(lambda t: t[0].float() if t.is_floating_point() else t[0], episode().support)
    known, strange = left(network()), left(network(), known=False)
    for source in (known, strange):
        params = with_teacher({"trunk.other": torch.zeros(1)}, source)
        assert learned(params).keys() == {"trunk.other"}
        told = told_by(source.net, params, support)["class"]
        features = source.net.features(source.params, support.x)
        if source.known:
            expected = F.linear(features, source.params["head.weight"], source.params["head.bias"])
        else:
            unit = F.normalize(features, dim=-1)
            expected = F.linear(unit, *logistic(unit, support.y["class"], 3))
        assert torch.allclose(told, expected, atol=1e-6)


def test_stages_are_counted_from_the_output_layer_down() -> None:
    net = Net.build(
        partial(CNN, SHAPE, channels=[3, 4], stride=2, pool=1, norm="batch", dropout=0.0, flatten=True, hidden=[6]),
        CLASSES,
        "batch",
    )
    depths = net.depths({**drawn(net), "other": torch.zeros(1)})
    expected = {"head": 0, "other": 0, "trunk.hidden.0": 1, "trunk.blocks.1": 2, "trunk.blocks.0": 3}
    assert depths == {name: next(d for stage, d in expected.items() if name.startswith(stage)) for name in depths}
    assert set(depths.values()) == {0, 1, 2, 3}
