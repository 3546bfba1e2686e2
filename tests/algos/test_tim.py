from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.tim import TIM
from metarun.maths.net import Net
from metarun.types import Batch, Head

WAYS, WIDTH, TAU = 3, 6, 15.0


@pytest.fixture
def net(linear_net: Net) -> Net:
    """Features are the inputs themselves."""
    return Net.build(partial(type(linear_net.module.trunk), WIDTH), {"class": Head("class", WAYS)}, "batch")


def learner(net: Net, information: float = 10.0, conditional: float = 0.1, inner_steps: int = 150) -> TIM:
    return TIM(net, "linear", TAU, information, conditional, inner_steps)


def problem(queries: int = 12) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * WAYS + queries, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(rows[: 2 * WAYS], {"class": torch.arange(WAYS).repeat(2)}), rows[2 * WAYS :]


def scores(algo: TIM, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt({}, support, 5)
    return algo.predict(fast, x)["class"]


def start(support: Batch) -> Tensor:
    z = F.normalize(support.x)
    return torch.stack([z[support.y["class"] == n].mean(0) for n in range(WAYS)])


def logits(w: Tensor, x: Tensor) -> Tensor:
    return -TAU / 2 * torch.cdist(F.normalize(x), w) ** 2


def test_without_mutual_information_it_is_the_fit_to_the_support_set_alone(net: Net) -> None:
    """A step is w_k − ∇_k CE / (τ share of class k), by autograd; and no query sees another."""
    support, x = problem()
    w, y = start(support), support.y["class"]
    for _ in range(7):
        w.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(logits(w, support.x), y), [w])
        w = (w - slope / (TAU / WAYS)).detach()
    algo = learner(net, information=0.0, inner_steps=7)
    assert torch.allclose(scores(algo, support, x), logits(w, x), atol=1e-9)
    assert torch.allclose(scores(algo, support, x)[:1], scores(algo, support, x[:1]), atol=1e-12)


def test_without_steps_it_is_the_nearest_mean_of_unit_features(net: Net) -> None:
    support, x = problem()
    assert torch.allclose(scores(learner(net, inner_steps=0), support, x), logits(start(support), x), atol=1e-9)


def test_a_step_is_one_of_descent_for_the_labels_that_the_probabilities_ask_for(net: Net) -> None:
    """q by the formula, for α = 0.5 and λ = 2; then the slope of CE(support) + λ (1 + α) CE(q, p) by autograd."""
    support, x = problem()
    w, y = start(support).requires_grad_(), support.y["class"]
    p = logits(w, x).softmax(1).detach()
    q = p**1.5 / (p**1.5).sum(0, keepdim=True) ** 0.5
    q = q / q.sum(1, keepdim=True)
    loss = F.cross_entropy(logits(w, support.x), y) + 2 * 1.5 * F.cross_entropy(logits(w, x), q)
    (slope,) = torch.autograd.grad(loss, [w])
    share = 1 / WAYS + 2 * 1.5 * q.mean(0)
    expected = logits((w - slope / (TAU * share[:, None])).detach(), x)
    found = scores(learner(net, information=2.0, conditional=0.5, inner_steps=1), support, x)
    assert torch.allclose(found, expected, atol=1e-9)


def test_mutual_information_rises(net: Net) -> None:
    def information(z: Tensor) -> Tensor:
        p = z.softmax(1)
        return (p * p.clamp(min=1e-12).log()).sum(1).mean() - (p.mean(0) * p.mean(0).log()).sum()

    support, x = problem()
    before, after = (information(scores(learner(net, inner_steps=k), support, x)) for k in (0, 150))
    assert after > before + 0.1


def test_a_query_alone_is_driven_to_no_class(net: Net) -> None:
    """Whose own entropy is that of the mean, so that it is to be high: what the page warns of."""
    support, x = problem()
    assert logits(start(support), x[:1]).softmax(1).max() > 0.8
    assert scores(learner(net), support, x[:1]).softmax(1).max() < 0.4
