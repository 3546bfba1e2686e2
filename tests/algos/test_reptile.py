from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.reptile import Reptile
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Params, learned, memory

VMAP = Parallel("vmap", 2)
STEPS, LR, BATCH = 4, 0.05, 3


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def by_torch(
    leaves: Params, support: Batch, plain_logits: Callable[..., Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Moves θ to φ_K by an optimiser of torch on mini-batches of 3 of the 6 support rows: rows 0-2, 3-5, 0-2, ..."""
    for step in range(STEPS):
        rows = slice(BATCH * (step % 2), BATCH * (step % 2) + BATCH)
        x, y = support.x[rows], support.y["class"][rows]
        optimizer.zero_grad()
        F.cross_entropy(plain_logits(leaves, x, x), y).backward()
        optimizer.step()


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

    arrived = []
    for t in range(3):
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        support = Batch(tasks.support.x[t], {"class": tasks.support.y["class"][t]})
        by_torch(leaves, support, plain_logits, make(list(leaves.values())))
        arrived.append({name: p.detach() for name, p in leaves.items()})
    mean = {name: torch.stack([p - fast[name] for fast in arrived]).mean(0) for name, p in params.items()}
    found, _ = Reptile(net, optim, LR, STEPS, BATCH, "task").meta_grad(params, tasks, VMAP)  # type: ignore[arg-type]
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
    found, _ = Reptile(linear_net, "sgd", LR, STEPS, 5, "task").meta_grad(params, points, VMAP)
    assert torch.allclose(torch.cat([found["head.weight"].flatten(), found["head.bias"]]), total / 3, atol=1e-12)


def test_an_outer_sgd_step_of_lr_one_on_one_task_lands_on_phi(linear_net: Net, points: Episode) -> None:
    params, one = start(linear_net), Episode(*(Batch(b.x[:1], {"y": b.y["y"][:1]}) for b in points))
    algo = Reptile(linear_net, "adam", LR, STEPS, 5, "task")
    found, _ = algo.meta_grad(params, one, VMAP)
    *_, fast = algo.adapt(params, Batch(one.support.x[0], {"y": one.support.y["y"][0]}), STEPS)
    assert all(torch.allclose(p - found[name], fast[name], atol=1e-14) for name, p in params.items())


def test_a_batch_larger_than_the_support_set_is_the_support_set(
    linear_net: Net, points: Episode, close: Callable[..., bool]
) -> None:
    params = start(linear_net)
    all_rows, more = (
        Reptile(linear_net, "sgd", LR, STEPS, b, "task").meta_grad(params, points, VMAP)[0] for b in (5, 99)
    )
    assert close(all_rows, more, 0.0)


def test_queries_judge_and_do_not_train(linear_net: Net, points: Episode, close: Callable[..., bool]) -> None:
    params, algo = start(linear_net), Reptile(linear_net, "sgd", LR, STEPS, 5, "task")
    other = Episode(points.support, Batch(points.query.x + 1, points.query.y))
    (one, judged), (two, differently) = (algo.meta_grad(params, e, VMAP) for e in (points, other))
    assert close(one, two, 0.0) and judged["mse"] != differently["mse"]


def kept(net: Net) -> tuple[Reptile, Params]:
    algo = Reptile(net, "adam", LR, STEPS, BATCH, "kept")
    return algo, {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}


def test_with_one_task_kept_moments_are_those_of_one_torch_optimiser_for_all_meta_steps(
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
) -> None:
    """As in the paper's code, which puts the parameters back and leaves the optimiser as it is."""
    algo, params = kept(conv_net())
    leaves = {name: params[name].clone().requires_grad_() for name in learned(params)}
    optimizer = torch.optim.Adam(list(leaves.values()), lr=LR, betas=(0.0, 0.999))
    for seed in range(3):
        one = episode(tasks=1, seed=seed)
        start = {name: p.detach().clone() for name, p in leaves.items()}
        by_torch(leaves, Batch(one.support.x[0], {"class": one.support.y["class"][0]}), plain_logits, optimizer)
        values, _ = algo.meta_grad(params, one, VMAP)
        for name, p in leaves.items():
            assert torch.allclose(values[name], start[name] - p.detach(), atol=1e-9), (seed, name)
            assert torch.allclose(values[f"memory.adam.square.{name}"], optimizer.state[p]["exp_avg_sq"], atol=1e-12)
        params = {**{name: p.detach().clone() for name, p in leaves.items()}, **memory(values)}
    assert params["memory.adam.steps"] == 3 * STEPS


def test_the_moment_that_is_kept_is_the_mean_over_the_steps_tasks(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], close: Callable[..., bool]
) -> None:
    (algo, params), tasks = kept(conv_net("none")), episode()
    values, _ = algo.meta_grad(params, tasks, VMAP)
    each = [algo.meta_grad(params, tree_map(lambda t, i=i: t[i : i + 1], tasks), VMAP)[0] for i in range(3)]
    assert close(values, {name: torch.stack([one[name] for one in each]).mean(0) for name in values}, 1e-12)
    assert memory(values).keys() == memory(params).keys() and values["memory.adam.steps"] == STEPS


def test_from_no_moment_yet_the_first_task_goes_as_with_a_moment_of_its_own(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    (algo, params), tasks = kept(conv_net("none")), episode()
    anew = Reptile(algo.net, "adam", LR, STEPS, BATCH, "task")
    (one, _), (other, _) = algo.meta_grad(params, tasks, VMAP), anew.meta_grad(learned(params), tasks, VMAP)
    assert all(torch.allclose(one[name], slope, rtol=1e-9) for name, slope in other.items())


def test_a_test_starts_from_the_kept_moment(conv_net: Callable[..., Net], episode: Callable[..., Episode]) -> None:
    """With much behind it a moment barely changes: of a squared slope of 4 a step is LR · slope / 2."""
    algo, params = kept(conv_net("none"))
    support = tree_map(lambda t: t[0], episode().support)
    square = {n: torch.full_like(p, 4.0) if ".square." in n else p for n, p in params.items()}
    old = {**square, "memory.adam.steps": torch.tensor(1e5).double()}
    _, fast = algo.adapt(old, support, 1)
    leaves = {name: p.clone().requires_grad_() for name, p in learned(params).items()}
    first = Batch(support.x[:BATCH], {"class": support.y["class"][:BATCH]})
    slopes = torch.autograd.grad(algo.net.loss(leaves, first), list(leaves.values()))
    for (name, p), g in zip(leaves.items(), slopes):
        assert torch.allclose(fast[name], p - LR * g / 2, rtol=0, atol=1e-3 * LR)
        assert not g.any() or not torch.allclose(fast[name], p - LR * g.sign(), atol=1e-3)


def test_moments_are_refused_to_an_inner_optimiser_without_any(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"^algo\.inner_moment=kept is about Adam, .*algo\.inner_moment=task\.$"):
        Reptile(linear_net, "sgd", LR, STEPS, BATCH, "kept").init(torch.Generator())
