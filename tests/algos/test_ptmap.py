from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.ptmap import PTMAP, transport
from metarun.maths.net import Net
from metarun.types import Batch, Head

WAYS, WIDTH = 3, 6


@pytest.fixture
def net(linear_net: Net) -> Net:
    """Features are the inputs themselves."""
    return Net.build(partial(type(linear_net.module.trunk), WIDTH), {"class": Head("class", WAYS)}, "batch")


def learner(net: Net, power: float = 0.5, inner_lr: float = 0.2, inner_steps: int = 20) -> PTMAP:
    return PTMAP(net, "linear", power, 10.0, inner_lr, inner_steps)


def problem() -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * WAYS + 12, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(rows[: 2 * WAYS], {"class": torch.arange(WAYS).repeat(2)}), rows[2 * WAYS :]


def scores(algo: PTMAP, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt({}, support, 5)
    return algo.predict(fast, x)["class"]


def prepared(x: Tensor) -> Tensor:
    z = F.normalize(torch.where(x < 0, -((-x).clamp(min=0) ** 0.5), x.clamp(min=0) ** 0.5))
    return F.normalize(z - z.mean(0))


def means(support: Batch) -> Tensor:
    z = prepared(support.x)
    return torch.stack([z[support.y["class"] == n].mean(0) for n in range(WAYS)])


def costs() -> Tensor:
    """Squared distances on the unit sphere lie between 0 and 4."""
    return 4 * torch.rand(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_plan_has_the_marginals_that_it_claims() -> None:
    plan = transport(costs(), torch.ones(5), sharpness=10.0)
    assert torch.allclose(plan.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(plan.sum(0), torch.full((5,), 8.0, dtype=torch.float64), atol=1e-3)
    assert (plan >= 0).all()


def test_the_plan_is_the_optimum_of_cost_minus_entropy() -> None:
    """There log P + λ cost is a number of the row plus one of the column: what is left without both means is zero."""
    left = transport(costs(), torch.ones(5), sharpness=3.0).log() + 3.0 * costs()
    left = left - left.mean(1, keepdim=True)
    assert torch.allclose(left, left.mean(0, keepdim=True).expand_as(left), atol=1e-9)


def test_a_class_without_support_rows_gets_no_query_and_the_others_all_alike() -> None:
    plan = transport(costs(), torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), sharpness=10.0)
    expected = torch.tensor([10.0, 0, 10, 10, 10], dtype=torch.float64)
    assert torch.allclose(plan.sum(0), expected, atol=1e-3) and not plan[:, 1].any()


def test_without_steps_it_transports_by_distances_to_the_support_means(net: Net) -> None:
    support, x = problem()
    plan = transport(torch.cdist(prepared(x), means(support)) ** 2, torch.ones(WAYS), 10.0)
    assert torch.allclose(scores(learner(net, inner_steps=0), support, x), plan.log(), atol=1e-9)


def test_a_whole_step_goes_to_the_mean_of_support_rows_and_of_queries_by_the_plan(net: Net) -> None:
    support, x = problem()
    z, seen = prepared(x), prepared(support.x)
    plan = transport(torch.cdist(z, means(support)) ** 2, torch.ones(WAYS), 10.0)
    moved = []
    for n in range(WAYS):
        own = seen[support.y["class"] == n]
        moved.append((own.sum(0) + plan[:, n] @ z) / (len(own) + plan[:, n].sum()))
    expected = transport(torch.cdist(z, torch.stack(moved)) ** 2, torch.ones(WAYS), 10.0).log()
    assert torch.allclose(scores(learner(net, inner_lr=1.0, inner_steps=1), support, x), expected, atol=1e-9)


def test_each_class_is_given_equally_many_queries(net: Net) -> None:
    """Though all of them are drawn around one support row, so that this is wrong: the page warns of it."""
    support, x = problem()
    crowd = support.x[:1] + 0.1 * x
    plan = scores(learner(net), support, crowd).exp()
    assert torch.allclose(plan.sum(0), torch.full((WAYS,), len(x) / WAYS, dtype=torch.float64), atol=1e-2)


def test_a_query_alone_is_given_to_all_classes_alike(net: Net) -> None:
    support, x = problem()
    alone = scores(learner(net), support, x[:1]).exp()
    assert torch.allclose(alone, torch.full((1, WAYS), 1 / WAYS, dtype=torch.float64), atol=1e-9)
