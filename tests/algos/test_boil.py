from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.boil import BOIL
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Episode, Params

ALPHA, STEPS = 0.3, 2
LAYER = {"head.weight", "head.bias"}


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def test_the_output_layer_stays_put_and_all_of_the_trunk_moves(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net()
    params = start(net)
    support, _ = tree_map(lambda t: t[0], episode())
    for before, fast in pairwise(BOIL(net, ALPHA, STEPS, False).adapt(params, support, 3)):
        assert {name for name in params if fast[name] is before[name]} == LAYER
        assert not any(fast[name].equal(before[name]) for name in params.keys() - LAYER)


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
    net, tasks = conv_net("batch", norm_stats), episode()
    params = start(net)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    losses = []
    for t in range(len(tasks.support.x)):
        x, y = tasks.support.x[t], tasks.support.y["class"][t]
        fast = dict(leaves)
        for _ in range(STEPS):
            trunk = {name: p for name, p in fast.items() if name not in LAYER}
            loss = F.cross_entropy(plain_logits(fast, x, x), y)
            slopes = torch.autograd.grad(loss, list(trunk.values()), create_graph=not first_order)
            fast |= {name: p - ALPHA * g for (name, p), g in zip(trunk.items(), slopes)}
        source = x if norm_stats == "support" else tasks.query.x[t]
        losses.append(F.cross_entropy(plain_logits(fast, tasks.query.x[t], source), tasks.query.y["class"][t]))
    mean = torch.stack(losses).mean()
    expected = dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values()))))
    slope, metrics = BOIL(net, ALPHA, STEPS, first_order).meta_grad(params, tasks, Parallel("vmap", 2))
    assert close(slope, expected, 1e-9) and torch.allclose(metrics["loss"], mean.detach())


def test_a_backbone_without_parameters_is_refused_before_training(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"^algo=boil adapts the backbone, .* algo=anil\.$"):
        BOIL(linear_net, ALPHA, STEPS, False).init(torch.Generator())
