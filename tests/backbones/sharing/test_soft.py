from __future__ import annotations

from collections.abc import Callable

import torch

from metarun.algos.mtl import MultiTask
from metarun.balance.equal import Equal
from metarun.engine.mapping import Parallel
from metarun.maths.net import Net
from metarun.maths.penalty import Penalty
from metarun.types import Batch, Params

LOOP = Parallel("loop", 1)


def learner(net: Net, single_task: bool = False) -> MultiTask:
    return MultiTask(net, Equal(), inner_lr=1.0, test_adapt="head", single_task=single_task)


def test_trunks_begin_as_one_and_the_same(shared_net: Callable[..., Net]) -> None:
    net = shared_net("soft", heads=3)
    params = net.init(torch.Generator().manual_seed(0))
    for name in (n for n in params if n.startswith("trunk.own.0.")):
        assert all(params[name].equal(params[name.replace("own.0.", f"own.{head}.")]) for head in (1, 2))
    assert net.penalty(params) < 1e-12


def test_without_a_tie_slopes_are_those_of_single_task_training(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    close: Callable[..., bool],
) -> None:
    """But for the mean over heads, of which there single-task training takes the sum."""
    net, rows = shared_net("soft", heads=3, tie=0.0), batch()
    params = start(net)
    found, _ = Penalty(learner(net), net).meta_grad(params, rows, LOOP)
    alone, _ = learner(shared_net("none", heads=3), single_task=True).meta_grad(params, rows, LOOP)
    assert close({name: 3 * slope for name, slope in found.items()}, alone, 1e-9)


def test_the_tie_pulls_each_trunk_to_the_mean_of_all_whatever_the_loss_weighs(
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    close: Callable[..., bool],
) -> None:
    """∂/∂θ_h of λ Σ ‖θ_h − θ̄‖² is 2λ(θ_h − θ̄); the loss that is told stays that of the data."""
    net, rows = shared_net("soft", heads=3, tie=0.25), batch()
    params = start(net)
    plain, metrics = learner(net).meta_grad(params, rows, LOOP)
    found, told = Penalty(learner(net), net).meta_grad(params, rows, LOOP)
    pull, size = {}, torch.zeros((), dtype=torch.float64)
    for name in (n for n in params if n.startswith("trunk.own.0.")):
        each = [name.replace("own.0.", f"own.{head}.") for head in range(3)]
        mean = torch.stack([params[n] for n in each]).mean(0)
        pull |= {n: 0.5 * (params[n] - mean) for n in each}
        size += 0.25 * sum((params[n] - mean).square().sum() for n in each)
    assert close({name: found[name] - plain[name] for name in pull}, pull, 1e-9)
    assert all(found[name].equal(plain[name]) for name in params.keys() - pull.keys())
    assert told["loss"].equal(metrics["loss"]) and torch.allclose(told["penalty"], size)


def test_a_strong_tie_brings_trunks_together(
    shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net, rows = shared_net("soft", "mlp", tie=10.0), batch("mlp")
    algo, params = Penalty(learner(net), net), start(net)
    before = net.penalty(params)
    for _ in range(20):
        slope, _ = algo.meta_grad(params, rows, LOOP)
        params = {name: p - 0.02 * slope[name] for name, p in params.items()}
    assert net.penalty(params) < 1e-4 * before
