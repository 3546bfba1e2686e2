"""Claims about each file of conf/sharing, whichever there are, on several backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.algos.mtl import MultiTask
from metarun.balance.equal import Equal
from metarun.cli import CONF
from metarun.construct import construct
from metarun.engine.mapping import Parallel
from metarun.identity import hold_choices
from metarun.maths.balanced import of_heads, weighed
from metarun.maths.losses import by_head
from metarun.maths.net import Net
from metarun.settings import Job
from metarun.types import Batch, Head, Params, UserError

ARCHITECTURES = sorted(path.stem for path in (CONF / "sharing").glob("*.yaml"))
BACKBONES = ["conv4", "lenet", "mlp", "resnet12"]
WEIGHTS = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

every = pytest.mark.parametrize("sharing", ARCHITECTURES)
on_every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


@dataclass(frozen=True)
class Given:
    """Weights that are what they are, for whoever asks by `needs`."""

    needs: str

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        return WEIGHTS, {}


def own(params: Params, head: int) -> list[str]:
    """The entries of the trunk that one head alone uses."""
    return [name for name in params if name == f"trunk.own.{head}" or name.startswith(f"trunk.own.{head}.")]


@every
@on_every_backbone
def test_each_head_has_features_of_its_own_which_depend_on_the_seed_alone(
    sharing: str, backbone: str, shared_net: Callable[..., Net], batch: Callable[..., Batch]
) -> None:
    """And nothing but parameters is stored."""
    net, x = shared_net(sharing, backbone), batch(backbone).x[0].float()
    net.module.eval()
    one, same, other = (net.seen(net.init(torch.Generator().manual_seed(seed)), x) for seed in (3, 3, 4))
    assert one.shape == (len(x), 2, net.module.trunk.features)
    assert one.equal(same) and not one.equal(other)
    assert not list(net.module.buffers())


@every
@pytest.mark.parametrize("backbone", ["conv4", "mlp"])
def test_slopes_reach_every_entry_and_vmap_equals_loop(
    sharing: str,
    backbone: str,
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    close: Callable[..., bool],
) -> None:
    """The slope after one inner step, of second order, per task."""
    net = shared_net(sharing, backbone)
    params = start(net)
    tasks = torch.cat([batch(backbone, seed=seed).x for seed in (0, 1)])

    def loss(params: Params, x: Tensor) -> Tensor:
        outputs = net(params, x)
        return outputs["digit"].sin().square().mean() + outputs["parity"].cos().mean()

    def after_one_step(params: Params, x: Tensor) -> Tensor:
        slope = grad(loss)(params, x)
        return loss({name: p - 0.01 * slope[name] for name, p in params.items()}, x.flip(-1))

    found = vmap(lambda x: grad(after_one_step)(params, x))(tasks)
    assert close({name: slope[1] for name, slope in found.items()}, grad(after_one_step)(params, tasks[1]), 1e-8)
    assert [name for name, slope in found.items() if not slope.any()] == []


@every
@on_every_backbone
def test_what_is_a_heads_own_changes_that_head_alone_and_the_rest_every_head(
    sharing: str,
    backbone: str,
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
) -> None:
    net = shared_net(sharing, backbone, heads=3)
    net.module.eval()
    params, x = start(net), batch(backbone).x[0]

    def changed(names: list[str]) -> list[bool]:
        before, after = (net.seen(p, x) for p in (params, {n: 0.7 * p if n in names else p for n, p in params.items()}))
        return [not torch.allclose(before[:, h], after[:, h], rtol=1e-9, atol=1e-12) for h in range(3)]

    for head in range(3):
        if names := own(params, head):
            assert changed(names) == [head == h for h in range(3)]
    shared = net.shared(params)
    assert len(shared) + sum(len(own(params, head)) for head in range(3)) == len(params) - 2  # but for the heads
    if shared:
        assert all(changed(shared))


@every
@pytest.mark.parametrize("backbone", ["conv4"])
def test_half_precision_rounds_features_and_no_more(
    sharing: str,
    backbone: str,
    shared_net: Callable[..., Net],
    batch: Callable[..., Batch],
) -> None:
    net, x = shared_net(sharing, backbone, heads=3), batch(backbone).x[0].float()
    params = net.init(torch.Generator().manual_seed(0))
    whole, half = net.seen(params, x), replace(net, half=True).seen(params, x)
    assert half.dtype == torch.float32 and not half.equal(whole)
    assert torch.cosine_similarity(whole.flatten(), half.flatten(), dim=0) > 0.99


@every
@pytest.mark.parametrize("backbone", ["conv4", "resnet12"])
def test_with_the_statistics_of_the_support_set_a_prediction_is_that_of_its_row_alone(
    sharing: str,
    backbone: str,
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
) -> None:
    net = shared_net(sharing, backbone, norm_stats="support")
    net.module.eval()
    params, x = start(net), batch(backbone).x[0]
    given = net.given(params, Batch(x.flip(-1), {}))
    assert net.batch_norm and torch.allclose(net.seen(given, x)[:1], net.seen(given, x[:1]), atol=1e-10)
    assert not torch.allclose(net.seen(given, x), net.seen(params, x), atol=1e-3)


def of_own(net: Net, rows: Batch) -> tuple[Net, Batch]:
    """The network and the rows where each head has rows of its own, a task each."""
    blank = {"digit": -100, "parity": -100, "ink": torch.nan}
    x = rows.x.unflatten(1, (3, -1))[0]
    each = {name: y.unflatten(1, (3, -1))[0].clone() for name, y in rows.y.items()}
    for task, y in enumerate(each.values()):
        for other in {0, 1, 2} - {task}:
            y[other] = blank[[*each][task]]
    heads = {name: replace(head, alone=True) for name, head in net.heads.items()}
    return replace(net, heads=heads, trained=heads), Batch(x, each)


@every
@pytest.mark.parametrize(("backbone", "alone"), [("lenet", False), ("mlp", True)])
@pytest.mark.parametrize("needs", ["losses", "gram", "slopes"])
def test_weights_weigh_what_heads_share_and_a_heads_own_gets_the_plain_mean(
    needs: str,
    sharing: str,
    backbone: str,
    alone: bool,
    shared_net: Callable[..., Net],
    start: Callable[..., Params],
    batch: Callable[..., Batch],
    close: Callable[..., bool],
) -> None:
    """As head by head, each loss by itself, autograd has it; weights of losses weigh every entry. So it is with rows
    that all heads share, and with rows of each."""
    net, rows = shared_net(sharing, backbone, heads=3), batch(backbone)
    if alone:
        net, rows = of_own(net, rows)
    params = start(net)
    algo = MultiTask(net, Given(needs), inner_lr=1.0, test_adapt="head", single_task=False)
    if needs != "losses" and not net.shared(params):
        with pytest.raises(UserError, match=r"^balance: Given weighs gradients of what heads share, and these"):
            algo.init(torch.Generator())
        return
    each = []
    for name in net.heads:
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        y = {n: y.flatten(0, 1) for n, y in rows.y.items()}
        loss = by_head(net.heads, net(leaves, rows.x.flatten(0, 1)), y).losses[name]
        slope = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        each.append(dict(zip(leaves, slope, strict=True)))
    together = params if needs == "losses" else net.shared(params)
    expected = {}
    for name in params:
        weights = WEIGHTS if name in together else torch.full((3,), 1 / 3, dtype=torch.float64)
        expected[name] = sum(w * slope[name] for w, slope in zip(weights, each, strict=True))
    for parallel in (Parallel("loop", 1), Parallel("vmap", 4)):
        assert close(algo.meta_grad(params, rows, parallel)[0], expected, 1e-9)
    if not alone:  # in an inner loop likewise
        task = Batch(rows.x[0], {name: y[0] for name, y in rows.y.items()})
        assert close(weighed(algo.balance, of_heads(net, params), params, task, [*params])[0], expected, 1e-9)


@every
def test_features_are_traced_and_a_step_runs_on_the_meta_device(
    sharing: str, shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    """Traced, they are the same of other numbers."""
    net = shared_net(sharing, "mlp", small={"hidden": [3, 3]})
    algo = MultiTask(net, Equal(), inner_lr=1.0, test_adapt="head", single_task=False)

    traced = make_fx(lambda params, x: net.seen(params, x))  # noqa: PLW0108 (it takes a method for its self, too)
    program = traced(start(net), batch("mlp").x[0])
    params, rows = start(net, seed=1), batch("mlp", seed=1)
    assert torch.allclose(program(params, rows.x[0]), net.seen(params, rows.x[0]), atol=1e-12)
    meta = Batch(rows.x.to("meta"), {name: rows.y[name].to("meta") for name in net.heads})
    slope, _ = algo.meta_grad({name: p.to("meta") for name, p in params.items()}, meta, Parallel("loop", 1))
    assert all(p.is_meta for p in slope.values())


@every
def test_a_learner_of_episodes_adapts_all_heads_jointly(
    sharing: str, shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net, rows = shared_net(sharing, "mlp", heads=3), batch("mlp", rows=8)
    task = Batch(rows.x[0], {name: y[0] for name, y in rows.y.items()})
    section = yaml.safe_load((CONF / "algo" / "maml.yaml").read_text())["algo"] | {"inner_lr": 0.05}
    algo = construct({key: value for key, value in section.items() if key != "trains_on"}, "algo", net=net)
    losses = [float(net.loss(fast, task).detach()) for fast in algo.adapt(start(net), task, 3)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


def test_heads_that_were_not_trained_and_features_of_all_heads_are_refused_in_one_line(
    shared_net: Callable[..., Net], batch: Callable[..., Batch]
) -> None:
    net = shared_net("hard", "conv4")
    with pytest.raises(UserError, match=r"^sharing= gives each of the 2 trained heads .*have class \(5\). Leave"):
        net.testing({"class": Head("class", 5)})
    for asked in (net.features, net.maps):
        with pytest.raises(UserError, match=r"^sharing= gives each head features of its own, and this algorithm asks"):
            asked({}, batch().x[0])
    with pytest.raises(UserError, match=r"^algo.single_task=true: .* sharing= is about .* Leave one of them out.$"):
        MultiTask(net, Equal(), inner_lr=1.0, test_adapt="head", single_task=True)


def table(folder: Path) -> tuple[str, ...]:
    """A CSV of two targets, and the command that learns them in two steps."""
    dice = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 3, generator=dice)
    lines = [f"{a:.3f},{b:.3f},{'up' if a > b else 'down'},{a + c:.3f}" for a, b, c in rows.tolist()]
    (folder / "rows.csv").write_text("\n".join(["a,b,kind,size", *lines]))
    return (
        *("algo=mtl", "data=table", "data.root=rows.csv", "data.targets=[kind,size]", "backbone=mlp"),
        *("parallel=loop", "train.steps=2", "train.log_every=1", "val.tasks=2", "test.tasks=2", "data.queries=4"),
    )


def test_a_penalty_is_descended_and_told_and_a_run_stays_with_its_architecture(
    metarun: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("polars")
    outcome = metarun(*table(tmp_path), "sharing=dselectk", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    told = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"train/penalty": ' in told and '"val/penalty"' not in told
    again = metarun("resume=run", "sharing=mmoe")
    assert again.code == 2 and "sharing=mmoe: the run in" in again.err and "begun with sharing=dselectk" in again.err
    assert metarun("resume=run", "train.steps=3").code == 0


def test_a_run_of_a_version_without_architectures_goes_on(job: Callable[..., Job]) -> None:
    new = job("algo=mtl")
    old = {group: choice for group, choice in new.choices.items() if group != "sharing"}
    hold_choices(new, {"choices": old})
    with pytest.raises(UserError, match=r"^sharing=mmoe: the run in .* was begun with sharing=None"):
        hold_choices(job("algo=mtl", "sharing=mmoe"), {"choices": old})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sharing=mmoe", "algo.single_task=true"], "algo.single_task=true: "),
        (["sharing=mmoe", "balance=mgda_ub"], "balance: MGDAUB weighs heads by features that they share, and sharing="),
        (["sharing=soft", "balance=pcgrad"], "these share no entry"),
        (["sharing=ple", "backbone.hidden=[]"], "sharing: trunks are joined after each of their stages"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    words: list[str], told: str, metarun: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("polars")
    outcome = metarun(*table(tmp_path), *words)
    assert outcome.code == 2 and outcome.err.startswith("metarun: ") and told in outcome.err
    assert outcome.err.count("\n") == 1
