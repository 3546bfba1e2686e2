from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.maml import MAML
from metarun.algos.mamlpp import MAMLPlusPlus
from metarun.engine.compile import Traced
from metarun.engine.mapping import Parallel
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import STEP, Batch, Episode, Params, learned, memory

ALPHA, STEPS, ANNEAL = 0.1, 3, 100
VMAP = Parallel("vmap", 2)
LAYERS = [f"trunk.blocks.{block}.norm" for block in (0, 1)]
MEAN = "memory.running.trunk.blocks.0.norm.mean"


def learner(net: Net, **keys: object) -> MAMLPlusPlus:
    defaults = {
        "inner_lr": ALPHA,
        "inner_steps": STEPS,
        "first_order": False,
        "multi_step": True,
        "anneal_steps": ANNEAL,
    }
    return MAMLPlusPlus(net, **{**defaults, **keys})  # type: ignore[arg-type]


def maml(net: Net, steps: int = STEPS, first_order: bool = False) -> MAML:
    return MAML(net, ALPHA, steps, first_order, inner_loss="mean", adapt_norm=False, remat=False)


def at(algo: MAMLPlusPlus, step: int) -> Params:
    """θ as it is drawn, in a given step of training; rates in double precision are those of `inner_lr`."""
    drawn = {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}
    rates = {name: torch.full_like(p, ALPHA) for name, p in drawn.items() if name.startswith("rate.")}
    return {**drawn, **rates, STEP: torch.tensor(step)}


def initial(entries: Params) -> Params:
    """Those of the network."""
    return {name: p for name, p in learned(entries).items() if not name.startswith("rate.")}


def shared(params: Params, net: Net) -> Params:
    """What MAML has of them: norms of one step for all."""
    return {name: p[0] if name in net.norm_names else p for name, p in initial(params).items()}


def of_shared(slope: Params, net: Net) -> Params:
    """The slope by norms that all steps share: the sum of those by each step's."""
    return {name: g.sum(0) if name in net.norm_names else g for name, g in initial(slope).items()}


def first(episode: Episode) -> Episode:
    return tree_map(lambda t: t[0], episode)


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("first_order", [False, True])
def test_annealed_and_with_equal_rates_it_is_maml(
    first_order: bool,
    norm: str,
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    close: Callable[..., bool],
) -> None:
    """Norms of each step that are all equal are shared ones. No running statistics are known yet: NaN must not leak."""
    net = conv_net(norm, norm_stats)
    algo = learner(net, first_order=first_order)
    params = at(algo, ANNEAL)
    expected, scores = maml(net, first_order=first_order).meta_grad(shared(params, net), episode(), VMAP)
    for multi_step in (True, False):
        slope, metrics = replace(algo, multi_step=multi_step).meta_grad(params, episode(), VMAP)
        assert close(of_shared(slope, net), expected) and close(metrics, scores)


def test_at_step_zero_the_losses_after_all_steps_count_alike(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], close: Callable[..., bool]
) -> None:
    """Meta-gradient and loss are the means of those of MAML with 1, 2 and 3 steps; the accuracy is the last one."""
    net = conv_net("none")
    params = at(learner(net), 0)
    each = [maml(net, steps).meta_grad(shared(params, net), episode(), VMAP) for steps in (1, 2, 3)]
    expected = {name: torch.stack([slope[name] for slope, _ in each]).mean(0) for name in each[0][0]}
    slope, metrics = learner(net).meta_grad(params, episode(), VMAP)
    loss = torch.stack([found["loss"] for _, found in each]).mean()
    assert close(initial(slope), expected) and close(metrics, {**each[-1][1], "loss": loss})


@pytest.mark.parametrize(
    ("step", "weights"),
    [(0, [1 / 4] * 4), (50, [1 / 8, 1 / 8, 1 / 8, 5 / 8]), (100, [0, 0, 0, 1]), (5000, [0, 0, 0, 1])],
)
def test_the_weights_move_to_the_last_loss_while_annealing(step: int, weights: list[float], linear_net: Net) -> None:
    found = learner(linear_net).weights(torch.tensor(float(step)), 4)
    assert torch.allclose(found, torch.tensor(weights).float())


def test_without_annealing_the_last_loss_counts_alone_from_step_one(linear_net: Net) -> None:
    algo = learner(linear_net, anneal_steps=0)
    assert algo.weights(torch.tensor(0.0), 2).tolist() == [0.5, 0.5]
    assert algo.weights(torch.tensor(1.0), 2).tolist() == [0, 1]


def test_a_compiled_step_is_not_frozen_to_one_number_of_a_step(
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    close: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda program, dynamic: program)
    algo = learner(conv_net("batch", "support"))
    program, slopes = Traced(algo, compiles=True, records=False), []
    for step in (0, ANNEAL // 2, ANNEAL):
        params = at(algo, step)
        found, _ = program.meta_grad(params, episode(), VMAP)
        expected, _ = algo.meta_grad(params, episode(), VMAP)
        assert close(found, expected)
        slopes.append(initial(found))
    assert len(program.programs) == 1
    assert not close(slopes[0], slopes[1], 1e-3) and not close(slopes[1], slopes[2], 1e-3)


def test_each_tensor_has_a_rate_for_each_step_and_the_last_stands_for_further_ones(
    linear_net: Net, points: Episode
) -> None:
    """φₖ₊₁ = φₖ − r_k ∘ (Hφₖ − c), on a quadratic."""
    algo = learner(linear_net, inner_steps=2)
    params = at(algo, 0)
    params["rate.head.weight"] = torch.tensor([0.3, 0.02], dtype=torch.float64)
    params["rate.head.bias"] = torch.tensor([0.1, -0.2], dtype=torch.float64)
    support = first(points).support
    x = torch.cat([support.x, torch.ones(5, 1, dtype=torch.float64)], 1)
    h, c = 2 / 5 * x.T @ x, 2 / 5 * x.T @ support.y["y"][:, 0]
    phi = torch.cat([params["head.weight"].flatten(), params["head.bias"]])
    path = list(algo.adapt(params, support, 4))
    for fast, k in zip(path[1:], (0, 1, 1, 1), strict=True):
        rate = torch.stack([params["rate.head.weight"][k], params["rate.head.weight"][k], params["rate.head.bias"][k]])
        phi = phi - rate * (h @ phi - c)
        assert torch.allclose(torch.cat([fast["head.weight"].flatten(), fast["head.bias"]]), phi, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_each_phi_has_norms_of_its_own_which_no_inner_step_moves(
    norm: str, conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net(norm)
    algo = learner(net)
    params = at(algo, 0)
    params |= {n: p + torch.rand_like(p) for n, p in params.items() if n in net.norm_names}
    assert params[f"{LAYERS[0]}.weight"].shape == (STEPS + 1, 3) and f"rate.{LAYERS[0]}.weight" not in params
    path = list(algo.adapt(params, first(episode()).support, STEPS + 2))
    for fast, k in zip(path, (0, 1, 2, 3, 3, 3), strict=True):
        assert all(fast[name].equal(params[name][k]) for name in net.norm_names)


def test_the_meta_gradient_is_that_of_finite_differences(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    """Of ¼ L₁ + ¾ L₂, half-way, by all that is learned, rates and norms among it."""
    net, tasks, eps = conv_net("batch"), episode(), 1e-6
    algo = learner(net, inner_steps=2)
    params, generator = at(algo, ANNEAL // 2), torch.Generator().manual_seed(1)
    way = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in learned(params).items()}

    def loss(side: float) -> float:
        moved = {**params, **{name: params[name] + side * eps * way[name] for name in way}}
        each = []
        for t in range(len(tasks.query.x)):
            task = tree_map(lambda leaf, t=t: leaf[t], tasks)
            _, *path = algo.adapt(moved, task.support, 2)
            losses = [F.cross_entropy(net(fast, task.query.x)["class"], task.query.y["class"]) for fast in path]
            each.append(0.25 * losses[0].detach() + 0.75 * losses[1].detach())
        return float(torch.stack(each).mean())

    slope, _ = algo.meta_grad(params, tasks, VMAP)
    along = sum(float((slope[name] * way[name]).sum()) for name in way)
    assert (loss(1) - loss(-1)) / (2 * eps) == pytest.approx(along, rel=1e-5)


def of_first_layer(fast: Params, x: Tensor) -> Tensor:
    name = "trunk.blocks.0.conv"
    return F.conv2d(x, fast[f"{name}.weight"], fast.get(f"{name}.bias"), stride=2, padding=1).mean((0, 2, 3))


def test_running_statistics_of_each_step_are_the_mean_over_tasks_of_the_queries(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    """The first are taken as they are, later ones move the old by a tenth of the difference."""
    algo, one, two = learner(conv_net("batch", "support")), episode(seed=0), episode(seed=1)
    params = at(algo, 0)
    assert all(p.shape[0] == STEPS + 1 and bool(p.isnan().all()) for p in memory(params).values())

    def seen(tasks: Episode) -> Tensor:
        rows = []
        for t in range(3):
            task = tree_map(lambda leaf, t=t: leaf[t], tasks)
            rows.append(torch.stack([of_first_layer(f, task.query.x) for f in algo.adapt(params, task.support, STEPS)]))
        return torch.stack(rows).mean(0)

    expected = seen(one)
    after = algo.meta_grad(params, one, VMAP)[0]
    assert memory(after).keys() == memory(params).keys()
    assert all(bool(p.isfinite().all()) for p in memory(after).values())
    assert torch.allclose(after[MEAN], expected, atol=1e-12)
    params |= memory(after)
    again = algo.meta_grad(params, two, VMAP)[0]
    assert torch.allclose(again[MEAN], 0.9 * expected + 0.1 * seen(two), atol=1e-12)


def test_predictions_are_normalised_by_the_running_statistics_of_their_step(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net("batch", "support")
    algo, task = learner(net), first(episode())
    params = at(algo, 0)
    generator = torch.Generator().manual_seed(2)
    params |= {n: torch.rand(p.shape, generator=generator).double() for n, p in memory(params).items()}
    params[MEAN][2] = float("nan")  # not known for the second step alone
    for fast, k in zip(algo.adapt(params, task.support, STEPS + 1), (0, 1, 2, 3, 3), strict=True):
        given = {f"{la}.{part}": params[f"memory.running.{la}.{part}"][k] for la in LAYERS for part in ("mean", "var")}
        if k == 2:
            given[f"{LAYERS[0]}.mean"] = of_first_layer(fast, task.support.x)
        assert all(torch.allclose(fast[name], value, atol=1e-12) for name, value in given.items())


def test_batch_statistics_need_no_memory(conv_net: Callable[..., Net]) -> None:
    assert not memory(at(learner(conv_net("batch", "batch")), 0)) and not memory(at(learner(conv_net("none")), 0))


def test_running_statistics_are_no_part_of_the_inner_loop(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    algo, task = learner(conv_net("batch", "support")), first(episode())
    unknown = at(algo, 0)
    known = {**unknown, **{name: torch.ones_like(p) for name, p in memory(unknown).items()}}
    one, other = (last(algo.adapt(params, task.support, STEPS)) for params in (unknown, known))
    assert one["head.weight"].equal(other["head.weight"])
    assert not torch.allclose(algo.predict(one, task.query.x)["class"], algo.predict(other, task.query.x)["class"])
    alone = Batch(task.query.x[:1], {})
    assert torch.allclose(
        algo.predict(other, alone.x)["class"], algo.predict(other, task.query.x)["class"][:1], atol=1e-12
    )
