from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.maml import MAML
from metarun.engine.mapping import Parallel
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

ALPHA = 0.1
VMAP = Parallel("vmap", 2)


def test_a_head_that_a_task_has_no_row_of_has_no_part_in_it(conv_net: Callable[..., Net]) -> None:
    """Episodes of two files beneath vmap: each is worth what it is worth with the heads of its file alone."""
    table = {"kind": Head("class", 3, gaps=True, alone=True), "price": Head("value", 1, gaps=True, alone=True)}
    net = Net.build(conv_net().make_trunk, table, "batch")
    net.module.double()
    generator = torch.Generator().manual_seed(0)

    def rows(each: int) -> Batch:
        x = torch.rand(2, each, 1, 8, 8, generator=generator, dtype=torch.float64)
        price = torch.rand(2, each, 1, generator=generator, dtype=torch.float64)
        kind = torch.randint(3, (2, each), generator=generator)
        return Batch(
            x,
            {
                "kind": kind.index_fill(0, torch.tensor([1]), -100),
                "price": price.index_fill(0, torch.tensor([0]), torch.nan),
            },
        )

    episode, params = Episode(rows(4), rows(3)), start(net)
    slope, metrics = solver(net).meta_grad(params, episode, VMAP)
    alone = []
    for task, (name, head) in enumerate(table.items()):
        own = Net.build(net.make_trunk, {name: head}, "batch")
        own.module.double()
        part = slice(0, 3) if name == "kind" else slice(3, 4)
        theta = {n: p[part] if n.startswith("head.") else p for n, p in params.items()}
        of_task = Episode(*(Batch(batch.x[task, None], {name: batch.y[name][task, None]}) for batch in episode))
        alone.append(solver(own).meta_grad(theta, of_task, VMAP))
    (of_kind, kind), (of_price, price) = alone
    for n, p in slope.items():
        both = torch.cat([of_kind[n], of_price[n]]) if n.startswith("head.") else of_kind[n] + of_price[n]
        assert torch.allclose(p, both / 2, atol=1e-12) and p.any()
    assert metrics["accuracy"].equal(kind["accuracy"]) and torch.allclose(metrics["mse"], price["mse"])


def flat(params: Params) -> Tensor:
    return torch.cat([params["head.weight"].flatten(), params["head.bias"]])


def quadratic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """H and c of mean (w·x + b − y)² = ½θᵀHθ − cᵀθ + ...: with x̃ = (x, 1), H = 2/B x̃ᵀx̃ and c = 2/B x̃ᵀy."""
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return 2 / len(x) * wide.T @ wide, 2 / len(x) * wide.T @ y[:, 0]


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def solver(net: Net, **keys: object) -> MAML:
    defaults = {
        "inner_lr": ALPHA,
        "inner_steps": 1,
        "first_order": False,
        "inner_loss": "mean",
        "adapt_norm": True,
        "remat": False,
    }
    return MAML(net, **{**defaults, **keys})  # type: ignore[arg-type]


def expected(theta: Tensor, points: Episode, steps: int, order: int) -> Tensor:
    """Mean over tasks of (I − αH)^K ∇L_query(φ_K), φ_k+1 = φ_k − α(Hφ_k − c); without the first factor if order 1."""
    total = torch.zeros_like(theta)
    for t in range(len(points.support.x)):
        h, c = quadratic(points.support.x[t], points.support.y["y"][t])
        h_query, c_query = quadratic(points.query.x[t], points.query.y["y"][t])
        phi = theta
        for _ in range(steps):
            phi = phi - ALPHA * (h @ phi - c)
        slope = h_query @ phi - c_query
        chain = torch.linalg.matrix_power(torch.eye(3, dtype=h.dtype) - ALPHA * h, steps)
        total += chain @ slope if order == 2 else slope
    return total / len(points.support.x)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_meta_gradient_is_the_query_gradient_through_k_factors_of_i_minus_alpha_h(
    linear_net: Net, points: Episode, steps: int
) -> None:
    params = start(linear_net)
    slope, _ = solver(linear_net, inner_steps=steps).meta_grad(params, points, VMAP)
    assert torch.allclose(flat(slope), expected(flat(params), points, steps, order=2), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_first_order_drops_the_hessian(linear_net: Net, points: Episode, steps: int) -> None:
    params = start(linear_net)
    slope, _ = solver(linear_net, inner_steps=steps, first_order=True).meta_grad(params, points, VMAP)
    assert torch.allclose(flat(slope), expected(flat(params), points, steps, order=1), atol=1e-12)
    assert not torch.allclose(flat(slope), expected(flat(params), points, steps, order=2), atol=1e-3)


def test_first_order_adapts_as_second_order_does(linear_net: Net, points: Episode) -> None:
    params = start(linear_net)
    support = Batch(points.support.x[0], {"y": points.support.y["y"][0]})
    one, other = (last(solver(linear_net, first_order=f).adapt(params, support, 3)) for f in (True, False))
    assert flat(one).equal(flat(other))


def test_a_sum_over_ways_is_a_mean_with_n_times_the_step(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], close: Callable[..., bool]
) -> None:
    net = conv_net()
    params = start(net)
    summed, _ = solver(net, inner_loss="sum", inner_lr=0.1).meta_grad(params, episode(), VMAP)
    mean, _ = solver(net, inner_loss="mean", inner_lr=0.3).meta_grad(params, episode(), VMAP)
    assert close(summed, mean)


def test_the_sum_is_over_ways_of_the_mean_over_shots(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], plain_logits: Callable[..., Tensor]
) -> None:
    """With shot k's N rows as one set: L = Σ over rows of cross-entropy / K, as in the paper's code."""
    net, shots = conv_net(), 2
    params = {name: p.requires_grad_() for name, p in start(net).items()}
    x, y = (episode(shots=shots).support.x[0], episode(shots=shots).support.y["class"][0])
    logits = plain_logits(params, x, x)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum") / shots, [params["head.bias"]])
    fast = last(solver(net, inner_loss="sum").adapt(params, Batch(x, {"class": y}), 1))
    assert torch.allclose(fast["head.bias"], params["head.bias"] - ALPHA * slope, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_adapt_norm_false_leaves_the_norms_parameters_at_theta(
    norm: str, conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net(norm)
    params = start(net)
    support = Batch(episode().support.x[0], {"class": episode().support.y["class"][0]})
    theta = {f"trunk.blocks.{b}.norm.{part}" for b in (0, 1) for part in ("weight", "bias")}
    fast = last(solver(net, adapt_norm=False).adapt(params, support, 2))
    assert {name for name in theta if fast[name].equal(params[name])} == theta
    assert not any(fast[name].equal(p) for name, p in params.items() if name.endswith("weight") and name not in theta)
    fast = last(solver(net, adapt_norm=True).adapt(params, support, 2))
    assert not any(fast[name].equal(params[name]) for name in theta)


def test_the_norms_parameters_are_meta_learned_though_not_adapted(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net()
    slope, _ = solver(net, adapt_norm=False).meta_grad(start(net), episode(), VMAP)
    assert all(bool(slope[name].any()) for name in net.norm_names)


def naive(params: Params, tasks: Episode, plain_logits: Callable[..., Tensor], algo: MAML) -> tuple[Params, float]:
    """Two loops, autograd with a graph, nothing shared with the program."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    losses = []
    for t in range(len(tasks.support.x)):
        x, y = tasks.support.x[t], tasks.support.y["class"][t]
        fast = dict(leaves)
        for _ in range(algo.inner_steps):
            loss = F.cross_entropy(plain_logits(fast, x, x), y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=not algo.first_order)
            fast = {
                name: p if ".norm." in name and not algo.adapt_norm else p - algo.inner_lr * g
                for (name, p), g in zip(fast.items(), slopes)
            }
        source = x if algo.net.norm_stats == "support" else tasks.query.x[t]
        losses.append(F.cross_entropy(plain_logits(fast, tasks.query.x[t], source), tasks.query.y["class"][t]))
    mean = torch.stack(losses).mean()
    return dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())))), float(mean.detach())


@pytest.mark.parametrize("adapt_norm", [True, False])
@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("first_order", [True, False])
def test_the_meta_gradient_is_that_of_a_naive_double_loop(
    first_order: bool,
    norm_stats: str,
    adapt_norm: bool,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
    close: Callable[..., bool],
) -> None:
    net = conv_net("batch", norm_stats)
    algo = solver(net, inner_lr=0.3, inner_steps=2, first_order=first_order, adapt_norm=adapt_norm)
    params = start(net)
    slope, loss = naive(params, episode(), plain_logits, algo)
    found, metrics = algo.meta_grad(params, episode(), VMAP)
    assert close(found, slope, 1e-9)
    assert float(metrics["loss"]) == pytest.approx(loss, abs=1e-12)


def test_the_meta_gradient_is_that_of_finite_differences_through_support_statistics(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net("batch", "support")
    algo, params, tasks = solver(net, inner_steps=1), start(net), episode()
    slope, _ = algo.meta_grad(params, tasks, VMAP)
    generator = torch.Generator().manual_seed(1)
    way = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    eps = 1e-6

    def loss(side: float) -> Tensor:
        moved = {name: p + side * eps * way[name] for name, p in params.items()}
        return algo.meta_grad(moved, tasks, VMAP)[1]["loss"]

    along = sum((slope[name] * way[name]).sum() for name in params)
    assert float((loss(1) - loss(-1)) / (2 * eps)) == pytest.approx(float(along), rel=1e-5)
