from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.maml import MAML
from metarun.algos.sparse import Sparse, towards
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.inner import last
from metarun.maths.net import Net
from metarun.types import Episode, Params, learned

ALPHA, STEPS, TAU = 0.1, 2, 0.02
MAPPINGS = [Parallel("vmap", 2), Parallel("loop", 1)]


def learner(net: Net, threshold: float = TAU, learn: bool = False, first_order: bool = False) -> Sparse:
    return Sparse(net, ALPHA, STEPS, first_order, threshold, learn)


def start(algo: Sparse) -> Params:
    return {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}


def flat(params: Params) -> Tensor:
    return torch.cat([params["head.weight"].flatten(), params["head.bias"]])


def first(tasks: Episode) -> Episode:
    return tree_map(lambda t: t[0], tasks)


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_with_threshold_zero_it_is_maml(
    parallel: Parallel,
    norm: str,
    first_order: bool,
    conv_net: Callable[..., Net],
    episode: Callable[..., Episode],
    close: Callable[..., bool],
) -> None:
    net = conv_net(norm)
    algo = learner(net, 0.0, first_order=first_order)
    maml = MAML(net, ALPHA, STEPS, first_order, inner_loss="mean", adapt_norm=True, remat=False)
    expected, scores = maml.meta_grad(start(algo), episode(), parallel)
    slope, metrics = algo.meta_grad(start(algo), episode(), parallel)
    assert close(slope, expected, 1e-12) and close({name: metrics[name] for name in scores}, scores, 1e-12)
    support, _ = first(episode())
    one, other = (last(each.adapt(start(algo), support, STEPS)) for each in (algo, maml))
    assert all(one[name].equal(p) for name, p in other.items())


def test_shrinking_is_soft_thresholding_of_the_way_from_theta() -> None:
    theta, way = torch.tensor([1.0, 1, 1, 1, 1]), torch.tensor([-3.0, -0.5, 0, 0.5, 3])
    assert towards(theta, theta + way, 1.0).tolist() == [-1, 1, 1, 1, 3]
    assert towards(theta, theta + way, 0.0).equal(theta + way)
    assert towards(theta, theta * torch.nan, 1.0).isnan().all()  # what diverges is seen to


def test_steps_arrive_at_the_minimum_of_the_loss_and_tau_times_the_distance(linear_net: Net, points: Episode) -> None:
    """Of ½φᵀHφ − cᵀφ + τ‖φ − θ‖₁: the slope is −τ sign(φ − θ) where φ moved, and at most τ where it did not."""
    algo, (support, _) = learner(linear_net, threshold=0.6), first(points)
    params = start(algo)
    x = torch.cat([support.x, torch.ones(5, 1, dtype=torch.float64)], 1)
    h, c = 2 / 5 * x.T @ x, 2 / 5 * x.T @ support.y["y"][:, 0]
    fast = last(algo.adapt(params, support, 500))
    way, slope = flat(fast) - flat(params), h @ flat(fast) - c
    moved = way != 0
    assert 0 < moved.sum() < 3
    assert torch.allclose(slope[moved], -0.6 * way[moved].sign(), atol=1e-9) and (slope.abs() <= 0.6 + 1e-9).all()
    assert fast["metric.changed"] == pytest.approx(float(moved.sum()) / 3)


def test_changed_is_the_share_of_entries_that_are_not_those_of_theta(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    algo, tasks = learner(conv_net()), episode()
    params = start(algo)
    ends = []
    for t in range(3):
        path = list(algo.adapt(params, tree_map(lambda leaf, t=t: leaf[t], tasks.support), STEPS))
        shares = [
            torch.cat([(fast[name] != p).flatten() for name, p in params.items()]).double().mean() for fast in path
        ]
        assert [float(fast["metric.changed"]) for fast in path] == pytest.approx([float(s) for s in shares])
        assert shares[0] == 0 < shares[-1] < 1
        ends.append(shares[-1])
    for parallel in MAPPINGS:
        _, metrics = algo.meta_grad(params, tasks, parallel)
        assert metrics["changed"] == pytest.approx(float(torch.stack(ends).mean()))


def test_a_higher_threshold_changes_fewer_entries_and_an_infinite_one_none(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    net, (support, _) = conv_net(), first(episode())
    shares = []
    for threshold in (0.0, 0.01, 0.05, 1e9):
        algo = learner(net, threshold)
        shares.append(float(last(algo.adapt(start(algo), support, STEPS))["metric.changed"]))
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[1] > shares[2] > shares[3] == 0


def test_a_learned_threshold_starts_as_the_fixed_one_and_has_the_slope_of_finite_differences(
    linear_net: Net, points: Episode, close: Callable[..., bool]
) -> None:
    fixed, algo, eps = learner(linear_net), learner(linear_net, learn=True), 1e-6
    log_tau = {f"log_threshold.{n}": torch.tensor(TAU).double().log() for n in learned(start(fixed))}
    params = {**start(fixed), **log_tau}
    assert {name: p for name, p in start(algo).items() if name in log_tau}.keys() == log_tau.keys()
    expected, _ = fixed.meta_grad(start(fixed), points, MAPPINGS[0])
    slope, _ = algo.meta_grad(params, points, MAPPINGS[0])
    assert close({name: slope[name] for name in expected}, expected)
    for name in log_tau:
        losses = [
            float(algo.meta_grad({**params, name: params[name] + side * eps}, points, MAPPINGS[0])[1]["loss"])
            for side in (1, -1)
        ]
        assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(float(slope[name]), rel=1e-4)


def test_a_threshold_of_zero_cannot_be_learned(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"^algo\.threshold=0 has no logarithm .* algo\.learn_threshold=false\.$"):
        learner(linear_net, 0.0, learn=True).init(torch.Generator())
