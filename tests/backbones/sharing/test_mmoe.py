from __future__ import annotations

from collections.abc import Callable

import torch

from metarun.backbones.sharing.mmoe import Gate
from metarun.maths.net import Net
from metarun.types import Batch, Params


def test_with_one_expert_it_is_hard_sharing(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    trunk: Callable[..., Params],
) -> None:
    net, plain, x = shared_net("mmoe", experts=1), shared_net("none"), batch().x[0]
    params = start(net)
    alone = plain.seen(trunk(params, "trunk.experts.0."), x)
    for head in range(2):
        assert torch.allclose(net.seen(params, x)[:, head], alone, atol=1e-12)


def test_features_are_the_experts_weighed_by_a_softmax_of_the_input(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    trunk: Callable[..., Params],
) -> None:
    net, plain, x = shared_net("mmoe", "mlp", experts=3), shared_net("none", "mlp"), batch("mlp").x[0]
    params = start(net)
    for head in range(2):
        weights = (x @ params[f"trunk.own.{head}.linear.weight"].T).softmax(-1)
        expected = torch.zeros(())
        for expert, weight in enumerate(weights.split(1, 1)):
            expected = expected + weight * plain.seen(trunk(params, f"trunk.experts.{expert}."), x)
        assert torch.allclose(net.seen(params, x)[:, head], expected, atol=1e-12)


def test_experts_are_drawn_each_by_itself(shared_net: Callable[..., Net]) -> None:
    params = shared_net("mmoe", experts=2).init(torch.Generator().manual_seed(0))
    one, other = (params[f"trunk.experts.{expert}.blocks.0.conv.weight"] for expert in range(2))
    assert not one.equal(other)


def test_a_gate_weighs_maps_as_it_weighs_vectors() -> None:
    gate, maps = Gate(3, 2), [torch.zeros(4, 5, 2, 2), torch.ones(4, 5, 2, 2)]
    x = torch.randn(4, 3)
    found = gate(x, maps)
    assert torch.allclose(found, gate.linear(x).softmax(-1)[:, 1, None, None, None].expand(4, 5, 2, 2))
