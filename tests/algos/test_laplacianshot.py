from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.laplacianshot import LaplacianShot, neighbours
from metarun.maths.net import Net
from metarun.maths.supervised import MEAN, SHARE
from metarun.types import Batch, Head

WAYS, WIDTH = 3, 6


@pytest.fixture
def net(linear_net: Net) -> Net:
    """Features are the inputs themselves."""
    return Net.build(partial(type(linear_net.module.trunk), WIDTH), {"class": Head("class", WAYS)}, "batch")


def learner(net: Net, smoothness: float = 0.7, count: int = 3, inner_steps: int = 20) -> LaplacianShot:
    return LaplacianShot(net, "linear", smoothness, count, inner_steps)


def problem() -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * WAYS + 12, WIDTH, generator=generator, dtype=torch.float64) + 1
    return Batch(rows[: 2 * WAYS], {"class": torch.arange(WAYS).repeat(2)}), rows[2 * WAYS :]


def scores(algo: LaplacianShot, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt({MEAN: x.new_full((WIDTH,), 0.5), SHARE: x.new_full((), 0.5)}, support, 5)
    return algo.predict(fast, x)["class"]


def costs(support: Batch, x: Tensor) -> Tensor:
    """The training mean is 0.5 / 0.5 = 1 in every entry."""
    z = F.normalize(support.x - 1)
    means = torch.stack([z[support.y["class"] == n].mean(0) for n in range(WAYS)])
    return torch.cdist(F.normalize(x - 1), means) ** 2


@pytest.mark.parametrize("keys", [{"smoothness": 0.0}, {"inner_steps": 0}], ids=str)
def test_without_smoothness_or_steps_it_is_the_nearest_centred_centroid(keys: dict[str, float], net: Net) -> None:
    support, x = problem()
    assert torch.allclose(scores(learner(net, **keys), support, x), -costs(support, x), atol=1e-9)  # type: ignore[arg-type]


def test_a_query_alone_goes_to_the_nearest_centroid(net: Net) -> None:
    support, x = problem()
    alone = torch.cat([scores(learner(net), support, one[None]) for one in x])
    assert torch.allclose(alone, -costs(support, x), atol=1e-9)


def test_neighbours_are_the_nearest_others_or_all_there_are() -> None:
    z = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbours(z, 1).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert neighbours(z, 9).equal(1 - torch.eye(4))


def test_a_step_adds_the_labels_of_the_neighbours(net: Net) -> None:
    support, x = problem()
    z, p = F.normalize(x - 1), (-costs(support, x)).softmax(1)
    expected = -costs(support, x)
    for q in range(len(x)):
        _, one, other = (z - z[q]).norm(dim=1).argsort().tolist()[:3]  # the first is the query itself
        expected[q] += 0.7 * (p[one] + p[other])
    assert torch.allclose(scores(learner(net, count=2, inner_steps=1), support, x), expected, atol=1e-9)


def test_many_steps_arrive_at_a_fixed_point(net: Net) -> None:
    """Where each p is the least of its own terms, given its neighbours'."""
    support, x = problem()
    one, other = (scores(learner(net, inner_steps=k), support, x) for k in (100, 101))
    assert torch.allclose(one, other, atol=1e-9) and not torch.allclose(one, -costs(support, x), atol=0.1)
