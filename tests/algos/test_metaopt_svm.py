from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.metaopt_svm import MetaOptSVM
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params


def classes(ways: int) -> dict[str, Head]:
    return {"class": Head("class", ways)}


def batch(x: Tensor, y: Tensor | list[int]) -> Batch:
    return Batch(x, {"class": torch.as_tensor(y)})


def scores(algo: Any, params: Params, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt(params, support, 0)
    return algo.predict(fast, x)["class"]


@pytest.fixture
def found(case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes."""
    return case("metaopt_svm", "none")


def one_task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


def test_logits_of_two_points_by_hand(linear_net: Net) -> None:
    """Support (1, 0) of class 0 and (−1, 0) of class 1: w₀ = −w₁ = (a, 0) with a margin of 2a at both, and it costs
    a² + 2C max(0, 1 − 2a): least at a = ½ where C ≥ ¼, else at a = 2C."""
    x = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    for penalty, a in ((0.1, 0.2), (1.0, 0.5)):
        algo = MetaOptSVM(Net.build(linear_net.make_trunk, classes(2), "batch"), penalty=penalty, scale=10.0)
        params = {name: p.double() for name, p in algo.init(torch.Generator()).items()}
        logits = scores(algo, params, batch(x, [0, 1]), torch.tensor([[3.0, 9]], dtype=torch.float64))
        assert torch.allclose(logits, torch.tensor([[30 * a, -30 * a]], dtype=torch.float64), atol=1e-4)


def test_it_separates_the_features_of_the_support_set_as_scikit_learn_does(case: Callable[..., Any]) -> None:
    """`penalty` is C, and `scale` multiplies what LinearSVC calls its decision function."""
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is not installed: pip install metarun[dev]")
    found = case("metaopt_svm", "none", penalty=0.1)
    support, query = one_task(found)
    seen, asked = (100 * found.algo.net.features(found.params, x).detach() for x in (support.x, query.x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = svm.LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=0.1, tol=1e-9, max_iter=10**6)
        expected = peer.fit(seen.numpy(), support.y["class"].numpy()).decision_function(asked.numpy())
    larger = {n: p * 100 if n.startswith("trunk.blocks.1.conv") else p for n, p in found.params.items()}
    logits = scores(found.algo, larger, support, query.x)
    assert torch.allclose(logits, torch.from_numpy(expected) * larger["log_scale"].exp(), rtol=1e-4, atol=1e-4)


def test_it_is_tested_with_other_ways_than_it_was_trained_with(found: Any) -> None:
    more = MetaOptSVM(found.algo.net.testing(classes(5)), penalty=1e4, scale=1.0)
    x = one_task(found).support.x
    assert scores(more, found.params, batch(x[:5], torch.arange(5)), x).argmax(-1)[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["one class present", "none present"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(linear_net: Net, y: list[int]) -> None:
    algo = MetaOptSVM(Net.build(linear_net.make_trunk, classes(2), "batch"), penalty=1.0, scale=1.0)
    x = torch.tensor([[5.0, 5], [6, 6], [-1, 0]], requires_grad=True)
    queries = torch.tensor([[-3.0, -3], [0, 0]], requires_grad=True)
    logits = scores(algo, algo.init(torch.Generator()), batch(x, y), queries)
    loss = judge(classes(2), {"class": logits}, {"class": torch.zeros(2, dtype=torch.long)})[0]
    assert loss.isfinite() and logits.argmax(-1).tolist() == [0, 0]
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss, [x, queries]))


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_meta_gradient_is_that_of_finite_differences(norm_stats: str, case: Callable[..., Any]) -> None:
    """Through the solution, the statistics and the scale."""
    found = case("metaopt_svm", "batch", norm_stats, penalty=5.0, scale=3.0)
    way = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double() for n, p in found.params.items()
    }
    eps = 1e-6

    def loss(side: float) -> Tensor:
        moved = {name: p + side * eps * way[name] for name, p in found.params.items()}
        return found.algo.meta_grad(moved, found.sample, Parallel("vmap", 6))[1]["loss"]

    slope, _ = found.algo.meta_grad(found.params, found.sample, Parallel("vmap", 6))
    along = sum((slope[name] * way[name]).sum() for name in way)
    assert float((loss(1) - loss(-1)) / (2 * eps)) == pytest.approx(float(along), rel=1e-4)
    assert slope["log_scale"] and slope["trunk.blocks.0.conv.weight"].any()


@pytest.mark.parametrize("key", ["penalty", "scale"])
def test_a_key_that_has_to_be_positive_is_refused_at_zero(key: str, case: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=rf"algo\.{key}=0\.0 is too small\. Give more than 0\."):
        case("metaopt_svm", **{key: 0.0})


def test_a_single_class_is_refused_in_training_and_in_the_test(found: Any) -> None:
    alone = MetaOptSVM(found.algo.net.testing(classes(1)), penalty=1.0, scale=1.0)
    support = batch(one_task(found).support.x[:2], [0, 0])
    for attempt in (lambda: alone.init(torch.Generator()), lambda: list(alone.adapt(found.params, support, 0))):
        with pytest.raises(UserError, match=r"^ways=1: algo=metaopt_svm separates classes\..* of 2 or more\.$"):
            attempt()


@pytest.mark.parametrize(
    "heads", [{"angle": Head("value", 1)}, {"a": Head("class", 2), "b": Head("class", 2)}], ids=["value", "two"]
)
def test_other_tasks_than_those_of_one_class_head_are_refused(linear_net: Net, heads: dict[str, Head]) -> None:
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        MetaOptSVM(Net.build(linear_net.make_trunk, heads, "batch"), penalty=1.0, scale=1.0).init(torch.Generator())
