from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.mtl import MultiTask
from metarun.balance.equal import Equal
from metarun.balance.pcgrad import PCGrad
from metarun.engine.mapping import Parallel
from metarun.maths.net import OWN, Net
from metarun.types import Balance, Batch, Head, Params, UserError, learned

VMAP = Parallel("vmap", 4)


def naive(params: Params, batch: Batch, heads: list[str], plain_logits: Callable[..., Tensor]) -> list[Params]:
    """One gradient per task, task by task: the cross-entropy of its own three outputs."""
    slopes = []
    for t in range(len(batch.x)):
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        (own,) = (k for k, name in enumerate(heads) if bool((batch.y[name][t] >= 0).any()))
        logits = plain_logits(leaves, batch.x[t], batch.x[t])[:, 3 * own : 3 * own + 3]
        loss = F.cross_entropy(logits, batch.y[heads[own]][t])
        slopes.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())))))
    return slopes


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_joint_gradient_is_the_mean_of_the_tasks_own_gradients(
    norm: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    mtl = case("mtl", norm)
    heads = list(mtl.sampler.heads)
    assert len(heads) == len(mtl.sample.x) == 4
    slopes = naive(mtl.params, mtl.sample, heads, plain_logits)
    mean = {name: torch.stack([s[name] for s in slopes]).mean(0) for name in mtl.params}
    found, _ = mtl.algo.meta_grad(mtl.params, mtl.sample, VMAP)
    assert close(found, mean, 1e-9)


def test_a_head_whose_task_is_absent_gets_no_gradient_and_the_others_do(case: Callable[..., Any]) -> None:
    mtl = case("mtl", "none")
    present = Batch(mtl.sample.x[:2], {name: y[:2] for name, y in mtl.sample.y.items()})
    slope, _ = mtl.algo.meta_grad(mtl.params, present, VMAP)
    for k, y in enumerate(present.y.values()):
        rows = slice(3 * k, 3 * k + 3)
        known = bool((y >= 0).any())
        assert bool(slope["head.weight"][rows].any()) == bool(slope["head.bias"][rows].any()) == known


def test_a_row_counts_for_its_own_head_alone(case: Callable[..., Any]) -> None:
    """The gradient of a task's bias is softmax − one-hot, averaged over its own rows and over the tasks."""
    mtl = case("mtl", "none")
    slope, _ = mtl.algo.meta_grad(mtl.params, mtl.sample, VMAP)
    shared = mtl.algo.net
    for k, (name, y) in enumerate(mtl.sample.y.items()):
        (t,) = (y >= 0).any(1).nonzero()[:, 0].tolist()
        error = shared(mtl.params, mtl.sample.x[t])[name].softmax(-1) - F.one_hot(y[t], 3)
        assert torch.allclose(slope["head.bias"][3 * k : 3 * k + 3], error.mean(0) / 4, atol=1e-12)


def test_a_group_of_classes_is_a_task_with_a_head_of_its_own(case: Callable[..., Any]) -> None:
    mtl = case("mtl")
    assert list(mtl.sampler.heads) == ["g0", "g1", "g2", "g3"]
    assert mtl.params["head.weight"].shape == (12, 4)
    known = torch.stack([y >= 0 for y in mtl.sample.y.values()])
    assert (known.sum(0) == 1).all()  # every row has one target


KINDS = {"digit": Head("class", 3, gaps=True), "parity": Head("class", 2), "ink": Head("value", 1)}


def rows(seed: int) -> Batch:
    """One batch that all heads share; some digits are not known."""
    dice = torch.Generator().manual_seed(seed)
    digit = torch.randint(-1, 3, (1, 12), generator=dice)
    y = {
        "digit": torch.where(digit < 0, -100, digit),
        "parity": digit.abs() % 2,
        "ink": torch.randn(1, 12, 1, generator=dice),
    }
    return Batch(torch.rand(1, 12, 1, 8, 8, generator=dice), y)


def learner(conv_net: Callable[..., Net], heads: list[str], balance: Balance, single_task: bool) -> MultiTask:
    net = Net.build(conv_net().make_trunk, {name: KINDS[name] for name in heads}, "batch")
    return MultiTask(net, balance, inner_lr=1.0, test_adapt="head", single_task=single_task)


def trained(algo: MultiTask, parallel: Parallel, steps: int = 4) -> Params:
    params = algo.init(torch.Generator().manual_seed(5))
    outer = torch.optim.Adam([*learned(params).values()], lr=0.01, weight_decay=0.1)
    for step in range(steps):
        batch = rows(step)
        slope, _ = algo.meta_grad(params, Batch(batch.x, {name: batch.y[name] for name in algo.net.heads}), parallel)
        for name, p in learned(params).items():
            p.grad = slope[name]
        outer.step()
        params |= {name: value for name, value in slope.items() if name.startswith("memory.")}
    return params


@pytest.mark.parametrize("parallel", [Parallel("loop", 1), VMAP], ids=str)
def test_single_task_training_gives_each_head_what_training_it_alone_gives(
    parallel: Parallel, conv_net: Callable[..., Net], close: Callable[..., bool]
) -> None:
    together = trained(learner(conv_net, [*KINDS], Equal(), single_task=True), parallel)
    start = 0
    for k, (name, head) in enumerate(KINDS.items()):
        alone = trained(learner(conv_net, [name], Equal(), single_task=False), parallel)
        own = {n.replace(f"{OWN}{k}.", "trunk."): p for n, p in together.items() if n.startswith(f"{OWN}{k}.")}
        layer = {n: together[n][start : start + head.size] for n in ("head.weight", "head.bias")}
        assert close({**own, **layer}, alone, 1e-6)
        start += head.size


def test_what_a_head_predicts_depends_on_its_own_trunk_alone(conv_net: Callable[..., Net]) -> None:
    algo = learner(conv_net, [*KINDS], Equal(), single_task=True)
    params, x = algo.init(torch.Generator().manual_seed(0)), rows(0).x[0]
    changed = {name: 2 * p if name.startswith(f"{OWN}1.") else p for name, p in params.items()}
    before, after = algo.predict(params, x), algo.predict(changed, x)
    assert [name for name in KINDS if not before[name].equal(after[name])] == ["parity"]
    assert algo.used.shared(params) == []
    assert sum(p.numel() for n, p in params.items() if n.startswith("trunk.")) == 3 * sum(
        p.numel() for n, p in algo.net.init(torch.Generator()).items() if n.startswith("trunk.")
    )


def test_trunks_apart_take_the_statistics_of_the_support_set_and_keep_no_dropout_at_the_test(
    conv_net: Callable[..., Net],
) -> None:
    net = Net.build(conv_net(dropout=0.5).make_trunk, KINDS, "support").testing(KINDS)
    algo = MultiTask(net, Equal(), inner_lr=1.0, test_adapt="head", single_task=True)
    params, batch = algo.init(torch.Generator().manual_seed(0)), rows(0)
    given = algo.used.given(params, Batch(batch.x[0], {}))
    both, one = algo.predict(given, batch.x[0]), algo.predict(given, batch.x[0, :1])
    assert all(torch.allclose(both[name][:1], one[name], atol=1e-6) for name in KINDS)


def test_single_task_training_refuses_new_heads_and_balances_of_gradients_in_one_line(
    conv_net: Callable[..., Net],
) -> None:
    algo = learner(conv_net, [*KINDS], Equal(), single_task=True)
    with pytest.raises(UserError, match=r"^algo.single_task=true: each of the 3 heads .* have other heads. Take data"):
        replace(algo, net=algo.net.testing({"class": Head("class", 5)})).adapt({}, rows(0), 1)
    with pytest.raises(UserError, match=r"^algo.single_task=true: .* balance of gradients .* Leave balance= out.$"):
        replace(algo, balance=PCGrad())
