from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.reptile import Reptile
from metarun.engine.mapping import Parallel
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Params

VMAP = Parallel("vmap", 2)
STEPS, LR, BATCH = 4, 0.05, 3


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def by_torch(
    params: Params, support: Batch, plain_logits: Callable[..., Tensor], make: Callable[..., torch.optim.Optimizer]
) -> Params:
    """φ_K by an optimiser of torch on mini-batches of 3 of the 6 support rows: rows 0-2, 3-5, 0-2, ..."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = make(list(leaves.values()))
    for step in range(STEPS):
        rows = slice(BATCH * (step % 2), BATCH * (step % 2) + BATCH)
        x, y = support.x[rows], support.y["class"][rows]
        optimizer.zero_grad()
        F.cross_entropy(plain_logits(leaves, x, x), y).backward()
        optimizer.step()
    return {name: p.detach() for name, p in leaves.items()}


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_the_gradient_is_the_mean_of_theta_minus_what_torchs_optimiser_arrives_at(
    optim: str,
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
    close: Callable[..., bool],
) -> None:
    net = conv_net("batch", norm_stats)
    params, tasks = start(net), episode()

    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(leaves, lr=LR) if optim == "sgd" else torch.optim.Adam(leaves, lr=LR, betas=(0.0, 0.999))

    arrived = [
        by_torch(params, Batch(tasks.support.x[t], {"class": tasks.support.y["class"][t]}), plain_logits, make)
        for t in range(3)
    ]
    mean = {name: torch.stack([p - fast[name] for fast in arrived]).mean(0) for name, p in params.items()}
    found, _ = Reptile(net, optim, LR, STEPS, BATCH).meta_grad(params, tasks, VMAP)  # type: ignore[arg-type]
    assert close(found, mean, 1e-9)


def test_on_a_quadratic_the_gradient_is_theta_minus_the_closed_form_of_gradient_descent(
    linear_net: Net, points: Episode
) -> None:
    """φ_K − θ* = (I − αH)^K (θ − θ*), θ* = H⁻¹c; hence θ − φ_K = (I − (I − αH)^K)(θ − θ*)."""
    params = start(linear_net)
    theta = torch.cat([params["head.weight"].flatten(), params["head.bias"]])
    eye, total = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(3):
        x = torch.cat([points.support.x[t], torch.ones(5, 1, dtype=torch.float64)], 1)
        h, c = 2 / 5 * x.T @ x, 2 / 5 * x.T @ points.support.y["y"][t, :, 0]
        total += (eye - torch.linalg.matrix_power(eye - LR * h, STEPS)) @ (theta - torch.linalg.solve(h, c))
    found, _ = Reptile(linear_net, "sgd", LR, STEPS, 5).meta_grad(params, points, VMAP)
    assert torch.allclose(torch.cat([found["head.weight"].flatten(), found["head.bias"]]), total / 3, atol=1e-12)


def test_an_outer_sgd_step_of_lr_one_on_one_task_lands_on_phi(linear_net: Net, points: Episode) -> None:
    params, one = start(linear_net), Episode(*(Batch(b.x[:1], {"y": b.y["y"][:1]}) for b in points))
    algo = Reptile(linear_net, "adam", LR, STEPS, 5)
    found, _ = algo.meta_grad(params, one, VMAP)
    *_, fast = algo.adapt(params, Batch(one.support.x[0], {"y": one.support.y["y"][0]}), STEPS)
    assert all(torch.allclose(p - found[name], fast[name], atol=1e-14) for name, p in params.items())


def test_a_batch_larger_than_the_support_set_is_the_support_set(
    linear_net: Net, points: Episode, close: Callable[..., bool]
) -> None:
    params = start(linear_net)
    all_rows, more = (Reptile(linear_net, "sgd", LR, STEPS, b).meta_grad(params, points, VMAP)[0] for b in (5, 99))
    assert close(all_rows, more, 0.0)


def test_queries_judge_and_do_not_train(linear_net: Net, points: Episode, close: Callable[..., bool]) -> None:
    params, algo = start(linear_net), Reptile(linear_net, "sgd", LR, STEPS, 5)
    other = Episode(points.support, Batch(points.query.x + 1, points.query.y))
    (one, judged), (two, differently) = (algo.meta_grad(params, e, VMAP) for e in (points, other))
    assert close(one, two, 0.0) and judged["mse"] != differently["mse"]
