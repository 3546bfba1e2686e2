from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.imaml import ImplicitMAML
from metarun.algos.maml import MAML
from metarun.engine.mapping import Parallel
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Params

ALPHA, LAMBDA = 0.1, 2.0
MAPPINGS = [Parallel("vmap", 2), Parallel("loop", 1)]


def learner(net: Net, steps: int, cg_steps: int, damping: float = 0.0, proximal: float = LAMBDA) -> ImplicitMAML:
    return ImplicitMAML(net, ALPHA, steps, proximal, cg_steps, damping)


def start(net: Net) -> Params:
    return {name: p.double() for name, p in net.init(torch.Generator().manual_seed(0)).items()}


def flat(params: Params) -> Tensor:
    return torch.cat([params["head.weight"].flatten(), params["head.bias"]])


def quadratic(batch: Batch, task: int) -> tuple[Tensor, Tensor]:
    """H and c of mean (w·x + b − y)² = ½θᵀHθ − cᵀθ + ..."""
    x = torch.cat([batch.x[task], torch.ones(len(batch.x[task]), 1, dtype=torch.float64)], 1)
    return 2 / len(x) * x.T @ x, 2 / len(x) * x.T @ batch.y["y"][task, :, 0]


def through_the_steps(theta: Tensor, points: Episode, steps: int) -> Tensor:
    """MAML's meta-gradient with the pull: Jᵀ ∇L_query(φ_K), J_k+1 = (I − α (H + λI)) J_k + αλI, J₀ = I."""
    total, eye = torch.zeros_like(theta), torch.eye(3, dtype=torch.float64)
    for task in range(3):
        (h, c), (h_query, c_query) = quadratic(points.support, task), quadratic(points.query, task)
        phi, jacobian = theta, eye
        for _ in range(steps):
            phi = phi - ALPHA * (h @ phi - c + LAMBDA * (phi - theta))
            jacobian = jacobian - ALPHA * (h + LAMBDA * eye) @ jacobian + ALPHA * LAMBDA * eye
        total += jacobian.T @ (h_query @ phi - c_query) / 3
    return total


@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_after_many_steps_on_a_quadratic_its_gradient_is_that_of_maml_through_all_of_them(
    parallel: Parallel, linear_net: Net, points: Episode
) -> None:
    params = start(linear_net)
    for steps, near in ((120, True), (2, False)):
        slope, _ = learner(linear_net, steps, cg_steps=3).meta_grad(params, points, parallel)
        expected = through_the_steps(flat(params), points, steps)
        assert torch.allclose(flat(slope), expected, atol=1e-9 if near else 1e-2) == near


def test_steps_arrive_at_the_minimum_of_the_loss_and_the_squared_distance(linear_net: Net, points: Episode) -> None:
    """(H + λI) φ = c + λθ."""
    params, (h, c) = start(linear_net), quadratic(points.support, 0)
    support = Batch(points.support.x[0], {"y": points.support.y["y"][0]})
    fast = last(learner(linear_net, 0, 0).adapt(params, support, 120))
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(flat(fast), torch.linalg.solve(h + LAMBDA * eye, c + LAMBDA * flat(params)), atol=1e-10)


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_meta_gradient_is_that_of_a_dense_solve(
    norm_stats: str,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    plain_logits: Callable[..., Tensor],
    close: Callable[..., bool],
) -> None:
    """With the whole H of each task, of steps and losses written out."""
    net, tasks, damping, proximal = conv_net("batch", norm_stats), episode(), 2.0, 3.0
    params = start(net)
    names, sizes = list(params), [p.numel() for p in params.values()]
    theta = torch.cat([p.flatten() for p in params.values()])

    def named(v: Tensor) -> Params:
        return {n: part.view_as(params[n]) for n, part in zip(names, v.split(sizes), strict=True)}

    total = torch.zeros_like(theta)
    for t in range(3):
        (x, y), (x_query, y_query) = tree_map(lambda leaf, t=t: leaf[t], tasks)
        source = x if norm_stats == "support" else x_query

        def support_loss(v: Tensor, x: Tensor = x, y: Any = y) -> Tensor:
            return F.cross_entropy(plain_logits(named(v), x, x), y["class"])

        phi = theta
        for _ in range(3):
            phi = phi - ALPHA * (torch.func.grad(support_loss)(phi) + proximal * (phi - theta))
        leaf = phi.clone().requires_grad_()
        loss = F.cross_entropy(plain_logits(named(leaf), x_query, source), y_query["class"])
        hessian: Any = torch.autograd.functional.hessian(support_loss, phi)
        system = (1 + damping) * torch.eye(len(theta), dtype=torch.float64) + hessian / proximal
        total += torch.linalg.solve(system, torch.autograd.grad(loss, leaf)[0]) / 3
    for parallel in MAPPINGS:
        slope, _ = learner(net, 3, 50, damping, proximal).meta_grad(params, tasks, parallel)
        assert close(slope, named(total), 1e-7)


def test_without_iterations_it_is_first_order_maml_with_a_pull(
    linear_net: Net, points: Episode, close: Callable[..., bool]
) -> None:
    """One step from θ feels no pull yet."""
    params = start(linear_net)
    maml = MAML(linear_net, ALPHA, 1, first_order=True, inner_loss="mean", adapt_norm=True, remat=False)
    expected, scores = maml.meta_grad(params, points, MAPPINGS[0])
    slope, metrics = learner(linear_net, 1, cg_steps=0).meta_grad(params, points, MAPPINGS[0])
    assert close(slope, expected, 1e-12) and close(metrics, scores, 1e-12)


class Held:
    """A tensor that autograd saved, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def most_held() -> Iterator[list[int]]:
    """The largest number of tensors that autograd had saved at a time."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()
    most = [0]

    def pack(tensor: Tensor) -> Held:
        kept = Held(tensor)
        held.add(kept)
        most[0] = max(most[0], len(held))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield most


def test_memory_does_not_grow_with_the_inner_steps(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net = conv_net()
    params, found = start(net), {}
    for steps in (2, 16):
        maml = MAML(net, ALPHA, steps, first_order=False, inner_loss="mean", adapt_norm=True, remat=False)
        for name, algo in (("imaml", learner(net, steps, 5)), ("maml", maml)):
            with most_held() as most:
                algo.meta_grad(params, episode(), MAPPINGS[1])
            found[name, steps] = most[0]
    assert found["imaml", 2] == found["imaml", 16] > 0
    assert found["maml", 16] > 4 * found["maml", 2]  # as it does where the way is kept
