from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.bdcspn import BDCSPN
from metarun.maths.net import Net
from metarun.types import Batch, Head

WAYS, WIDTH = 3, 6


@pytest.fixture
def net(linear_net: Net) -> Net:
    """Features are the inputs themselves."""
    return Net.build(partial(type(linear_net.module.trunk), WIDTH), {"class": Head("class", WAYS)}, "batch")


def learner(net: Net, shift: bool = True, temperature: float = 10.0, inner_steps: int = 1) -> BDCSPN:
    return BDCSPN(net, "linear", shift, temperature, inner_steps)


def problem() -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * WAYS + 12, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(rows[: 2 * WAYS], {"class": torch.arange(WAYS).repeat(2)}), rows[2 * WAYS :]


def scores(algo: BDCSPN, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt({}, support, 5)
    return algo.predict(fast, x)["class"] / 10


def means(support: Batch) -> Tensor:
    z = F.normalize(support.x)
    return torch.stack([z[support.y["class"] == n].mean(0) for n in range(WAYS)])


def cosines(x: Tensor, c: Tensor) -> Tensor:
    return F.cosine_similarity(x[:, None], c[None], dim=-1)


def test_without_rectification_and_shift_it_is_the_nearest_cosine_centroid(net: Net) -> None:
    support, x = problem()
    found = scores(learner(net, shift=False, inner_steps=0), support, x)
    assert torch.allclose(found, cosines(x, means(support)), atol=1e-12)


def test_with_equal_weights_a_prototype_is_the_mean_of_support_rows_and_queries_that_look_like_them(net: Net) -> None:
    support, x = problem()
    guess, z = cosines(x, means(support)).argmax(1), F.normalize(torch.cat([support.x, x]))
    member = torch.cat([support.y["class"], guess])
    rectified = torch.stack([z[member == n].mean(0) for n in range(WAYS)])
    found = scores(learner(net, shift=False, temperature=0.0), support, x)
    assert torch.allclose(found, cosines(x, rectified), atol=1e-12)


def test_a_row_weighs_by_the_softmax_of_its_cosine_to_the_class(net: Net) -> None:
    support, x = problem()
    sides = cosines(torch.cat([support.x, x]), means(support))
    member = torch.cat([support.y["class"], sides[len(support.x) :].argmax(1)])
    z, rectified = F.normalize(torch.cat([support.x, x])), []
    for n in range(WAYS):
        own = member == n
        rectified.append((4.0 * sides[own, n]).softmax(0) @ z[own])
    found = scores(learner(net, shift=False, temperature=4.0), support, x)
    assert torch.allclose(found, cosines(x, torch.stack(rectified)), atol=1e-12)


def test_the_shift_moves_the_queries_mean_onto_the_support_sets(net: Net) -> None:
    support, x = problem()
    z = F.normalize(x)
    moved = z - z.mean(0) + F.normalize(support.x).mean(0)
    found = scores(learner(net, inner_steps=0), support, x)
    assert torch.allclose(found, cosines(moved, means(support)), atol=1e-12)


def test_rows_without_a_class_are_not_in_the_support_sets_mean(net: Net) -> None:
    support, x = problem()
    padded = Batch(torch.cat([x, support.x]), {"class": F.pad(support.y["class"], (len(x), 0), value=-100)})
    assert torch.allclose(scores(learner(net), padded, x), scores(learner(net), support, x), atol=1e-12)


def test_unshifted_a_query_alone_goes_to_the_nearest_centroid(net: Net) -> None:
    support, x = problem()
    algo = learner(net, shift=False)
    alone = torch.cat([scores(algo, support, one[None]) for one in x]).argmax(1)
    assert alone.equal(cosines(x, means(support)).argmax(1))
