from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.algos.maml import MAML
from metarun.algos.metasgd import MetaSGD
from metarun.engine.mapping import Parallel
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Params

ALPHA = 0.1
VMAP = Parallel("vmap", 2)


def start(algo: MetaSGD | MAML, scatter: float = 0.0) -> Params:
    """θ, with rates that are all their own."""
    generator = torch.Generator().manual_seed(0)
    params = {name: p.double() for name, p in algo.init(generator).items()}
    noise = {n: scatter * torch.randn(p.shape, generator=generator).double() for n, p in params.items()}
    return {name: p + noise[name] if name.startswith("rate.") else p for name, p in params.items()}


def flat(params: Params, prefix: str = "") -> Tensor:
    return torch.cat([params[f"{prefix}head.weight"].flatten(), params[f"{prefix}head.bias"]])


def quadratic(batch: Batch, task: int) -> tuple[Tensor, Tensor]:
    """H and c of mean (w·x + b − y)² = ½θᵀHθ − cᵀθ + ..."""
    x = torch.cat([batch.x[task], torch.ones(len(batch.x[task]), 1, dtype=torch.float64)], 1)
    return 2 / len(x) * x.T @ x, 2 / len(x) * x.T @ batch.y["y"][task, :, 0]


def test_every_parameter_has_a_rate_that_starts_at_inner_lr(conv_net: Callable[..., Net]) -> None:
    params = MetaSGD(conv_net(), ALPHA, 1).init(torch.Generator().manual_seed(0))
    own = {name: p for name, p in params.items() if not name.startswith("rate.")}
    assert len(params) == 2 * len(own)
    assert all(params[f"rate.{name}"].equal(torch.full_like(p, ALPHA)) for name, p in own.items())


def test_a_step_is_theta_minus_rate_times_slope_entry_by_entry(linear_net: Net, points: Episode) -> None:
    algo = MetaSGD(linear_net, ALPHA, 1)
    params = start(algo, scatter=0.1)
    h, c = quadratic(points.support, 0)
    support = Batch(points.support.x[0], {"y": points.support.y["y"][0]})
    theta, rate = flat(params), flat(params, "rate.")
    assert torch.allclose(
        flat(last(algo.adapt(params, support, 1))), theta - rate * (h @ theta - c), rtol=0, atol=1e-14
    )


def test_the_meta_gradient_on_a_quadratic_is_the_closed_form(linear_net: Net, points: Episode) -> None:
    """g = ∇L_query(φ₁): by θ it is (I − H diag r) g, by r it is −g ∘ ∇L_support(θ)."""
    algo = MetaSGD(linear_net, ALPHA, 1)
    params = start(algo, scatter=0.1)
    theta, rate = flat(params), flat(params, "rate.")
    by_theta, by_rate = torch.zeros_like(theta), torch.zeros_like(theta)
    for task in range(3):
        (h, c), (h_query, c_query) = quadratic(points.support, task), quadratic(points.query, task)
        slope = h @ theta - c
        g = h_query @ (theta - rate * slope) - c_query
        by_theta += (g - h @ (rate * g)) / 3
        by_rate -= g * slope / 3
    found, _ = algo.meta_grad(params, points, VMAP)
    assert torch.allclose(flat(found), by_theta, rtol=0, atol=1e-12)
    assert torch.allclose(flat(found, "rate."), by_rate, rtol=0, atol=1e-12)


def test_the_meta_gradient_by_the_rates_is_that_of_finite_differences(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    algo, tasks, eps = MetaSGD(conv_net(), ALPHA, 2), episode(), 1e-6
    params = start(algo, scatter=0.05)
    rates = [name for name in params if name.startswith("rate.")]
    generator = torch.Generator().manual_seed(1)
    way = {name: torch.randn(params[name].shape, generator=generator, dtype=torch.float64) for name in rates}

    def loss(side: float) -> float:
        moved = {name: params[name] + side * eps * way[name] for name in rates}
        return float(algo.meta_grad({**params, **moved}, tasks, VMAP)[1]["loss"])

    slope, _ = algo.meta_grad(params, tasks, VMAP)
    along = sum(float((slope[name] * way[name]).sum()) for name in rates)
    assert (loss(1) - loss(-1)) / (2 * eps) == pytest.approx(along, rel=1e-5)


def test_with_equal_rates_the_initialisation_has_mamls_meta_gradient(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], close: Callable[..., bool]
) -> None:
    net = conv_net()
    maml = MAML(net, ALPHA, 2, first_order=False, inner_loss="mean", adapt_norm=True, remat=False)
    algo = MetaSGD(net, ALPHA, 2)
    params = {**start(algo), **{f"rate.{n}": torch.full_like(p, ALPHA) for n, p in start(maml).items()}}
    expected, scores = maml.meta_grad(start(maml), episode(), VMAP)
    found, metrics = algo.meta_grad(params, episode(), VMAP)
    assert close({name: found[name] for name in expected}, expected) and close(metrics, scores)
