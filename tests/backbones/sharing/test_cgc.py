from __future__ import annotations

from collections.abc import Callable

import torch

from metarun.maths.net import Net
from metarun.types import Batch, Params


def test_without_shared_experts_it_is_a_trunk_for_each_head(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    trunk: Callable[..., Params],
) -> None:
    net, plain, x = shared_net("cgc", shared=0, own=1), shared_net("none"), batch().x[0]
    params = start(net)
    for head in range(2):
        alone = plain.seen(trunk(params, f"trunk.own.{head}.experts.0."), x)
        assert torch.allclose(net.seen(params, x)[:, head], alone, atol=1e-12)


def test_a_gate_weighs_the_heads_own_experts_first_and_then_those_of_all(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    trunk: Callable[..., Params],
) -> None:
    net, plain, x = shared_net("cgc", "mlp", shared=1, own=1), shared_net("none", "mlp"), batch("mlp").x[0]
    params = start(net)
    for head in range(2):
        weights = (x @ params[f"trunk.own.{head}.gate.linear.weight"].T).softmax(-1)
        names = (f"trunk.own.{head}.experts.0.", "trunk.shared.0.")
        own, common = (plain.seen(trunk(params, name), x) for name in names)
        assert torch.allclose(net.seen(params, x)[:, head], weights[:, :1] * own + weights[:, 1:] * common, atol=1e-12)
