from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.maml import MAML
from metarun.algos.mmtl import INNER, MetaMultiTask
from metarun.algos.reptile import Reptile
from metarun.balance.equal import Equal
from metarun.balance.famo import FAMO
from metarun.balance.mgda_ub import MGDAUB
from metarun.balance.pcgrad import PCGrad
from metarun.balance.uncertainty import LOGS, Uncertainty
from metarun.check.gradient import meta_gradient
from metarun.check.smooth import Smooth
from metarun.cli import CONF
from metarun.construct import construct
from metarun.engine.compile import Traced
from metarun.engine.mapping import Parallel
from metarun.maths.balanced import balanced, of_heads, weighed
from metarun.maths.inner import last
from metarun.maths.losses import by_head
from metarun.maths.net import Net
from metarun.types import LOTS, MEMORY, Balance, Batch, Episode, Head, Heads, Params, UserError, learned, memory

LR, STEPS = 0.3, 3
VMAP, LOOP = Parallel("vmap", 3), Parallel("loop", 1)
HEADS = {"kind": Head("class", 3), "size": Head("value", 1), "place": Head("value", 2)}
GAPS = {name: replace(head, gaps=True) for name, head in HEADS.items()}
Outer, Weighs = Literal["maml", "fomaml", "reptile"], Literal["outer", "inner", "both"]
NEEDS = ("losses", "gram", "slopes", "features")


@dataclass(frozen=True)
class Given:
    """Weights that are what they are, for whoever asks by `needs`; it counts how often it was asked."""

    weights: Tensor
    needs: Any

    def init(self, tasks: int, size: int) -> Params:
        return {"memory.asked": torch.zeros(())}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        return self.weights.to(losses.dtype), {"memory.asked": kept["memory.asked"] + 1}


def network(heads: Heads) -> Net:
    """Smooth, so that finite differences meet no kink."""
    net = Net.build(partial(Smooth, (3,), False, 4), heads, "batch")
    net.module.double()
    return net


def learner(
    balance: Balance, outer: Outer = "maml", weighs: Weighs = "both", heads: Heads = HEADS
) -> tuple[MetaMultiTask, Params]:
    algo = MetaMultiTask(network(heads), balance, outer, weighs, LR, STEPS)
    params = {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}
    return algo, drawn(params)


def drawn(params: Params) -> Params:
    """With the numbers of a step."""
    dice = torch.Generator().manual_seed(1)
    return {name: torch.rand_like(p, generator=dice) if name == LOTS else p for name, p in params.items()}


def tasks(heads: Heads = HEADS, count: int = 3) -> Episode:
    """Each of six support rows and four queries; targets depend on the inputs."""
    dice = torch.Generator().manual_seed(0)

    def batch(rows: int) -> Batch:
        x = torch.randn(count, rows, 3, generator=dice, dtype=torch.float64)
        y = {"kind": x.argmax(-1), "size": 2 * x.sum(-1, keepdim=True), "place": x[..., :2].sin()}
        return Batch(x, {name: y[name] for name in heads})

    return Episode(batch(6), batch(4))


def named(balance: str) -> Balance:
    try:
        return construct(yaml.safe_load((CONF / "balance" / f"{balance}.yaml").read_text()), "balance")
    except UserError as error:
        pytest.skip(str(error))  # an extra is not installed


@pytest.mark.parametrize("parallel", [VMAP, LOOP], ids=str)
@pytest.mark.parametrize("outer", ["maml", "fomaml"])
@pytest.mark.parametrize("heads", [["size"], [*HEADS]], ids=len)
def test_with_equal_weights_it_is_maml(
    heads: list[str], outer: Outer, parallel: Parallel, close: Callable[..., bool]
) -> None:
    some = {name: HEADS[name] for name in heads}
    for weighs in get_args(Weighs):
        algo, params = learner(Equal(), outer, weighs, some)
        maml = MAML(algo.net, LR, STEPS, outer == "fomaml", "mean", adapt_norm=True, remat=False)
        (found, metrics), (slope, scores) = (a.meta_grad(params, tasks(some), parallel) for a in (algo, maml))
        assert close(found, slope, 1e-12) and close({name: metrics[name] for name in scores}, scores, 1e-12)
        support = tree_map(lambda t: t[0], tasks(some).support)
        for one, other in zip(algo.adapt(params, support, 2), maml.adapt(params, support, 2), strict=True):
            assert close(one, other, 1e-12)


def test_with_equal_weights_its_other_outer_loop_is_reptile(close: Callable[..., bool]) -> None:
    algo, params = learner(Equal(), "reptile")
    reptile = Reptile(algo.net, "sgd", LR, STEPS, 99, "task")
    (found, metrics), (slope, scores) = (a.meta_grad(params, tasks(), VMAP) for a in (algo, reptile))
    assert close(found, slope, 1e-12) and close(metrics, scores, 1e-12)


@pytest.mark.parametrize("needs", NEEDS)
def test_where_weights_are_constants_the_meta_gradient_is_that_of_finite_differences(needs: str) -> None:
    """Those of the inner loop; a head's own entries have the plain mean where slopes are weighed."""
    algo, params = learner(Given(torch.tensor([0.7, -0.2, 0.5]), needs), weighs="inner")
    assert not algo.first_order
    outcome = meta_gradient(algo, params, tasks())
    assert outcome.holds, outcome.found


@pytest.mark.parametrize("needs", ["losses", "gram", "slopes"])
def test_outer_weights_weigh_the_slopes_of_the_query_losses_by_every_entry(
    needs: str, close: Callable[..., bool]
) -> None:
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    algo, params = learner(Given(weights, needs), weighs="outer")
    leaves = {name: p.clone().requires_grad_() for name, p in learned(params).items()}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        task = tree_map(lambda part, t=t: part[t], tasks())
        fast = last(algo.adapt({**params, **leaves}, task.support, STEPS))
        losses = by_head(HEADS, algo.predict(fast, task.query.x), task.query.y).losses
        total = total + weights @ torch.stack([*losses.values()]) / 3
    slope = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    for parallel in (VMAP, LOOP):
        found, metrics = algo.meta_grad(params, tasks(), parallel)
        assert found.pop("memory.asked") == 1 and close(found, slope, 1e-10)
        assert [float(metrics[f"{name}/weight"]) for name in HEADS] == weights.tolist()
        assert ("cosine" in metrics) == (needs != "losses")


@pytest.mark.parametrize("balance", sorted(path.stem for path in (CONF / "balance").glob("*.yaml")))
def test_an_inner_step_weighs_the_heads_of_a_task_as_a_training_step_on_it_alone_would(
    balance: str, close: Callable[..., bool]
) -> None:
    """By itself and beneath vmap; and so the next step, from what the balance knows then."""
    algo, params = learner(Equal(), weighs="outer")
    weigher, net = named(balance), algo.net
    objectives, own = of_heads(net, params), [*params]
    size = sum(params[name].numel() for name in objectives.shared)
    params |= drawn({name: p.double() for name, p in weigher.init(len(HEADS), size).items()})
    support = tasks().support
    for _ in range(2):
        step = partial(weighed, weigher, objectives, params, adapted=own)
        mapped = torch.vmap(lambda task, step=step: step(task=task), randomness="different")(support)
        for t in range(3):
            task, other = (tree_map(lambda part, t=t: part[t], tree) for tree in (support, mapped))
            alone = tree_map(lambda part: part[None], task)
            expected, _ = balanced(weigher, objectives, params, alone, VMAP)
            for slope, entries in (step(task=task), other):
                assert close({**slope, **entries}, expected, 1e-9)
        params |= {name: p if name.startswith(MEMORY) else params[name] - 0.1 * p for name, p in expected.items()}


@pytest.mark.parametrize("balance", ["famo", "uncertainty", "gradnorm", "pcgrad", "dbmtl", "graddrop", "mgda_ub"])
def test_vmap_equals_the_loop_with_weights_in_every_loop(balance: str, close: Callable[..., bool]) -> None:
    """One balance of each kind: of losses, of slopes and of features; that remember, that learn and that draw."""
    weighs: Weighs = "inner" if balance == "mgda_ub" else "both"
    algo, params = learner(named(balance), weighs=weighs)
    (found, metrics), (looped, scores) = (algo.meta_grad(params, tasks(), p) for p in (VMAP, LOOP))
    assert close(found, looped, 1e-9) and close(metrics, scores, 1e-9)
    assert all(p.isfinite().all() for p in found.values())
    assert found.keys() >= learned(params).keys() and not any(name.startswith(INNER) for name in found)


def test_traced_with_weights_of_slopes_in_the_inner_loop_it_computes_the_same_from_other_numbers(
    close: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda program, dynamic: program)
    algo, params = learner(PCGrad(), weighs="inner")
    algo = replace(algo, inner_steps=1)
    program = Traced(algo, compiles=True, records=False)
    for episode in (tasks(), Episode(*(Batch(1.5 * batch.x, batch.y) for batch in tasks()))):
        assert close(program.meta_grad(params, episode, VMAP)[0], algo.meta_grad(params, episode, VMAP)[0], 1e-12)
    assert len(program.programs) == 1


def test_the_inner_balance_goes_on_from_step_to_step_and_starts_anew_in_each_task() -> None:
    algo, params = learner(Given(torch.full((3,), 1 / 3), "losses"), weighs="both")
    for t in range(2):
        support = tree_map(lambda part, t=t: part[t], tasks().support)
        asked = [fast["memory.asked"].item() for fast in algo.adapt(params, support, 4)]
        assert asked == [0, 1, 2, 3, 4]
    found, _ = algo.meta_grad(params, tasks(), VMAP)
    assert memory(found) == {"memory.asked": torch.ones(())}  # of the outer loop alone


@pytest.mark.parametrize("outer", ["maml", "reptile"])
def test_what_the_inner_balance_learns_is_moved_by_inner_steps(outer: Outer) -> None:
    """With the slope of L = 1/H Σ exp(−s) L_h + s by s; the network's is weighed by exp(−s) / H."""
    algo, params = learner(Uncertainty(), outer, weighs="inner" if outer == "maml" else "both")
    support = tree_map(lambda t: t[0], tasks().support)
    assert LOGS not in params and not params[INNER + LOGS].any()
    logs, fast = torch.zeros(3, dtype=torch.float64), learned(params)
    *_, found = algo.adapt(params, support, 2)
    for _ in range(2):
        leaves = {name: p.detach().requires_grad_() for name, p in fast.items()}
        losses = torch.stack([*by_head(HEADS, algo.predict(leaves, support.x), support.y).losses.values()])
        weights = (-logs).exp() / 3
        slope = torch.autograd.grad(weights @ losses, list(leaves.values()))
        fast = {name: p - LR * g for (name, p), g in zip(leaves.items(), slope, strict=True)}
        logs = logs - LR * (1 / 3 - weights * losses.detach())
    assert torch.allclose(found[LOGS], logs, atol=1e-12)
    assert all(torch.allclose(found[name], p, atol=1e-12) for name, p in fast.items())


def test_outer_and_inner_balance_keep_what_they_keep_apart(close: Callable[..., bool]) -> None:
    """The outer one notes the queries' losses; the inner one's, of the support sets, are nowhere in the next θ."""
    algo, params = learner(FAMO(0.1, 0.0, 0.0), weighs="both")
    names = [name for name in params if name.startswith(f"{MEMORY}famo.")]
    assert names and {INNER + name for name in names} <= params.keys()
    found, _ = algo.meta_grad(params, tasks(), VMAP)
    later = {**params, **{name: found[name] for name in names}}
    assert memory(found).keys() == {*names} and all(not found[name].isnan().any() for name in names)
    support = tree_map(lambda t: t[0], tasks().support)
    (*_, one), (*_, other) = (algo.adapt(p, support, 2) for p in (params, later))
    assert close(learned(one), learned(other), 0.0)


@pytest.mark.parametrize("balance", ["equal", "pcgrad", "graddrop", "mgda_ub"])
@pytest.mark.parametrize("outer", get_args(Outer))
def test_a_head_without_any_target_has_no_part_in_either_loop(outer: Outer, balance: str) -> None:
    """Its own entries stay, and the others move as if there were no such head."""
    weighs: Weighs = "inner" if balance == "mgda_ub" else "both"
    algo, params = learner(named(balance), outer, weighs, GAPS)
    episode = tasks()
    for batch in episode:
        batch.y["size"] = torch.full_like(batch.y["size"], math.nan)
    found, _ = algo.meta_grad(params, episode, VMAP)
    assert all(found[name].isfinite().all() for name in learned(found))
    assert not found["head.bias"][3].any() and not found["head.weight"][3].any()
    if balance != "equal":
        return
    fewer = {name: GAPS[name] for name in ("kind", "place")}
    less, _ = learner(Equal(), outer, weighs, fewer)
    without = {**params, **{n: torch.cat([params[n][:3], params[n][4:]]) for n in ("head.weight", "head.bias")}}
    slope, _ = less.meta_grad(without, Episode(*(Batch(b.x, {n: b.y[n] for n in fewer}) for b in episode)), VMAP)
    assert all(torch.allclose(found[name], g, atol=1e-12) for name, g in slope.items() if name.startswith("trunk."))


@pytest.mark.parametrize("balance", ["equal", "famo", "pcgrad", "dbmtl"])
def test_tasks_with_inputs_and_one_head_of_their_own_are_learned_together(
    balance: str, close: Callable[..., bool]
) -> None:
    """With equal weights by MAML's slope; others need a slope for each task, which vmap and the loop find alike."""
    alone = {name: replace(head, alone=True) for name, head in GAPS.items()}
    algo, params = learner(named(balance), heads=alone)
    episode = tasks()
    for batch in episode:
        for t, name in enumerate(HEADS):
            others = torch.arange(3) != t
            batch.y[name] = batch.y[name].clone()
            batch.y[name][others] = -100 if name == "kind" else math.nan
    (found, metrics), (looped, scores) = (algo.meta_grad(params, episode, p) for p in (VMAP, LOOP))
    assert close(found, looped, 1e-9) and {f"{name}/weight" for name in HEADS} <= metrics.keys() == scores.keys()
    if balance == "equal":
        maml = MAML(algo.net, LR, STEPS, first_order=False, inner_loss="mean", adapt_norm=True, remat=False)
        assert close(found, maml.meta_grad(params, episode, VMAP)[0], 1e-12)


@pytest.mark.parametrize(
    ("balance", "outer", "weighs", "words"),
    [
        (Equal(), "reptile", "outer", r"^algo.balanced=outer: algo.outer=reptile .* Take algo.balanced=inner, or "),
        (MGDAUB(), "maml", "both", r"^algo.balanced=both: MGDAUB weighs .* Take algo.balanced=inner, or another "),
    ],
)
def test_what_has_nothing_to_weigh_is_refused_in_one_line(
    balance: Balance, outer: Outer, weighs: Weighs, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        learner(balance, outer, weighs)


def test_heads_that_cannot_be_adapted_are_refused_in_one_line() -> None:
    """Those of another number than was trained, and any from no row at all."""
    algo, params = learner(PCGrad())
    other = replace(algo, net=algo.net.testing({"kind": Head("class", 5)}))
    with pytest.raises(UserError, match=r"^the output layer that this algorithm learns is for kind \(3\), size"):
        last(other.adapt(params, tree_map(lambda t: t[0], tasks().support), 1))
    with pytest.raises(UserError, match=r"^data.shots=0: there is nothing to adapt to.* Give 1 or more, or take "):
        next(algo.adapt(params, Batch(torch.zeros(0, 3), {}), 0))
