from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.r2d2 import R2D2, ridge_regression
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Head, Params

SHAPES = [(3, 5), (5, 5), (9, 5)]  # rows, features: Woodbury, both alike, primal


def problem(rows: int, features: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (features, 2))  # type: ignore[return-value]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


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
    return case("r2d2", "none")


def one_task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


@pytest.mark.parametrize(("rows", "features"), SHAPES)
def test_ridge_regression_is_least_squares_on_rows_of_root_lambda(rows: int, features: int) -> None:
    """‖XW − Y‖² + λ‖W‖² = ‖[X; √λ I] W − [Y; 0]‖²."""
    (x, y), ridge = problem(rows, features), 0.7
    longer = np.vstack([x.numpy(), math.sqrt(ridge) * np.eye(features)])
    expected = np.linalg.lstsq(longer, np.vstack([y.numpy(), np.zeros((features, 2))]))[0]
    assert np.allclose(ridge_regression(x, y, scalar(ridge)).numpy(), expected, atol=1e-12)


def test_the_form_for_few_rows_equals_the_form_for_many() -> None:
    """Rows of zeros change no solution, and enough of them change the form."""
    x, y = problem(4, 5)
    padded = (F.pad(t, (0, 0, 0, 2)) for t in (x, y))
    assert torch.allclose(ridge_regression(x, y, scalar(0.3)), ridge_regression(*padded, scalar(0.3)), atol=1e-12)


@pytest.mark.parametrize(("rows", "features"), SHAPES)
def test_the_solution_is_differentiated_exactly(rows: int, features: int) -> None:
    x, y = problem(rows, features)
    assert torch.autograd.gradcheck(ridge_regression, tuple(t.requires_grad_() for t in (x, y, scalar(0.5))))


def test_logits_of_two_points_by_hand(linear_net: Net) -> None:
    """Support (1, 0) of class 0 and (0, 0) of class 1, so rows (1, 0, 1) and (0, 0, 1): XXᵀ + I = [[3, 1], [1, 2]],
    whose inverse is [[2, −1], [−1, 3]] / 5; W = Xᵀ of that: (2, 0, 1)/5 and (−1, 0, 2)/5. At (3, 9): 7/5 and −1/5."""
    algo = R2D2(Net.build(linear_net.make_trunk, classes(2), "batch"), ridge=1.0, scale=10.0)
    params = {name: p.double() for name, p in algo.init(torch.Generator()).items()}
    support = batch(torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64), [0, 1])
    logits = scores(algo, params, support, torch.tensor([[3.0, 9]], dtype=torch.float64))
    assert torch.allclose(logits, torch.tensor([[14.0, -2]], dtype=torch.float64), atol=1e-5)  # 10 as float32's log


def test_a_vanishing_lambda_fits_few_support_rows_exactly(found: Any) -> None:
    x, params = one_task(found).support.x[:3], {**found.params, "log_ridge": scalar(-30.0), "log_scale": scalar(0.0)}
    logits = scores(found.algo, params, batch(x, torch.arange(3)), x)
    assert torch.allclose(logits, torch.eye(3, dtype=torch.float64), atol=1e-5)


def test_lambda_and_scale_begin_at_their_keys(case: Callable[..., Any]) -> None:
    params = case("r2d2", ridge=7, scale=3.0).params
    assert params["log_ridge"].exp() == pytest.approx(7) and params["log_scale"].exp() == pytest.approx(3)


@pytest.mark.parametrize("key", ["ridge", "scale"])
def test_what_has_no_logarithm_is_refused(key: str, case: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=rf"algo\.{key}=0\.0 is too small\. Give more than 0\."):
        case("r2d2", **{key: 0.0})


def test_it_is_tested_with_other_ways_than_it_was_trained_with(found: Any) -> None:
    more = R2D2(found.algo.net.testing(classes(5)), ridge=1.0, scale=1.0)
    x = one_task(found).support.x
    params = {**found.params, "log_ridge": scalar(-20.0)}
    assert scores(more, params, batch(x[:5], torch.arange(5)), x).argmax(-1)[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("absent", [[1], [0, 1, 2]], ids=["one class absent", "all absent"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(found: Any, absent: list[int]) -> None:
    support, query = one_task(found)
    y = support.y["class"].masked_fill(torch.isin(support.y["class"], torch.tensor(absent)), -100)
    logits = scores(found.algo, found.params, batch(support.x, y), query.x)
    assert logits.isfinite().all() and [n for n in range(3) if (logits[:, n] < -1e9).all()] == absent


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_the_meta_gradient_is_that_of_a_naive_loop_by_an_inverse(
    norm_stats: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    """Features are the logits of an output layer that is the identity. λ and the scale are learned, too."""
    found = case("r2d2", "batch", norm_stats, ridge=0.5)
    leaves = {name: p.clone().requires_grad_() for name, p in found.params.items()}
    layer = {"head.weight": torch.eye(4, dtype=torch.float64), "head.bias": torch.zeros(4, dtype=torch.float64)}
    losses = []
    for t in range(len(found.sample.support.x)):
        support, query = tree_map(lambda leaf, t=t: leaf[t], found.sample)
        source = support.x if norm_stats == "support" else query.x
        seen, asked = (
            F.pad(plain_logits({**leaves, **layer}, x, s), (0, 1), value=1.0)
            for x, s in ((support.x, support.x), (query.x, source))
        )
        gram = seen.T @ seen + leaves["log_ridge"].exp() * torch.eye(5, dtype=torch.float64)
        weight = torch.linalg.inv(gram) @ seen.T @ F.one_hot(support.y["class"]).double()
        losses.append(F.cross_entropy(leaves["log_scale"].exp() * asked @ weight, query.y["class"]))
    loss = torch.stack(losses).mean()
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    algo_slope, metrics = found.algo.meta_grad(found.params, found.sample, Parallel("vmap", 4))
    assert close(algo_slope, slope, 1e-9) and torch.allclose(metrics["loss"], loss.detach())
    assert algo_slope["log_ridge"] and algo_slope["log_scale"]


@pytest.mark.parametrize(
    "heads", [{"angle": Head("value", 1)}, {"a": Head("class", 2), "b": Head("class", 2)}], ids=["value", "two"]
)
def test_other_tasks_than_those_of_one_class_head_are_refused(linear_net: Net, heads: dict[str, Head]) -> None:
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        R2D2(Net.build(linear_net.make_trunk, heads, "batch"), ridge=1.0, scale=1.0).init(torch.Generator())
