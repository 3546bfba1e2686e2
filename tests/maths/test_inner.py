from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.engine.mapping import Parallel
from metarun.maths.gradient import grad
from metarun.maths.inner import adam, last, sgd
from metarun.maths.losses import judge
from metarun.types import Batch, Head, Params

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
THETA = torch.tensor([1.0, -2.0], dtype=torch.float64)
LR = 0.1
MAPPINGS = [Parallel("loop", 1), Parallel("loop", 4), *(Parallel("vmap", chunk) for chunk in (1, 2, 4, 5, 6, 99))]


NOTHING = Batch(torch.zeros(0), {})


def bowl(params: Params, *_: Any) -> Tensor:
    return 0.5 * params["w"] @ H @ params["w"]


def test_sgd_yields_every_point_of_the_trajectory() -> None:
    """φ_k = (I − αH)^k θ."""
    factor = torch.eye(2, dtype=torch.float64) - LR * H
    path = list(sgd(bowl, {"w": THETA}, NOTHING, LR, 3, ["w"], first_order=False))
    assert len(path) == 4
    for k, point in enumerate(path):
        assert torch.allclose(point["w"], torch.linalg.matrix_power(factor, k) @ THETA, atol=1e-14)


@pytest.mark.parametrize("first_order", [True, False])
def test_the_derivative_of_the_end_by_the_start(first_order: bool) -> None:
    """∂φ_K/∂θ = (I − αH)^K, and I where the gradient is held constant."""
    eye = torch.eye(2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda w: last(sgd(bowl, {"w": w}, NOTHING, LR, 3, ["w"], first_order))["w"], THETA
    )
    assert torch.allclose(jacobian, eye if first_order else torch.linalg.matrix_power(eye - LR * H, 3), atol=1e-14)


def test_what_is_not_adapted_stays_and_still_carries_a_gradient() -> None:
    params = {"w": THETA, "scale": torch.tensor(2.0, dtype=torch.float64)}

    def end(params: Params) -> tuple[Tensor, Params]:
        fast = last(sgd(lambda p, *_: p["scale"] * bowl(p), params, NOTHING, LR, 1, ["w"], first_order=False))
        assert fast["scale"] is params["scale"]
        return fast["w"].sum(), {}

    slope, _ = grad(end, params)
    assert slope["scale"] == pytest.approx(float(-LR * (H @ THETA).sum()))  # φ = θ − α s Hθ


def test_adam_is_torchs_adam_with_beta1_zero() -> None:
    w = THETA.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=LR, betas=(0.0, 0.999))
    for point in adam(bowl, {"w": THETA}, NOTHING, LR, 5, ["w"]):
        assert torch.allclose(point["w"], w.detach(), atol=1e-12)
        optimizer.zero_grad()
        bowl({"w": w}, 0).backward()
        optimizer.step()


def test_a_parameter_the_loss_does_not_see_has_gradient_zero() -> None:
    slope, _ = grad(lambda p: (bowl(p, 0), {}), {"w": THETA, "unseen": torch.ones(3)})
    assert slope["unseen"].equal(torch.zeros(3)) and torch.allclose(slope["w"], H @ THETA)


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_vmap_equals_the_loop_and_the_chunk_changes_nothing(
    algo_name: str, norm: str, norm_stats: str, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case(algo_name, norm, norm_stats)
    reference, *others = (found.algo.meta_grad(found.params, found.sample, parallel) for parallel in MAPPINGS)
    for slope, metrics in others:  # Adam divides by ε = 1e-8 where batch norm leaves a bias without gradient
        assert close(slope, reference[0], 1e-9 if algo_name == "reptile" else 1e-12) and close(
            metrics, reference[1], 1e-12
        )


def test_meta_gradients_and_adapting_change_no_input(algo_name: str, case: Callable[..., Any]) -> None:
    for keys in ({}, {"test_adapt": "all"}) if algo_name in ("mtl", "transfer") else ({},):
        found = case(algo_name, **keys)
        task = tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator())))
        inputs = (found.params, found.sample, task)
        before = tree_map(torch.clone, inputs)
        found.algo.meta_grad(found.params, found.sample, Parallel("vmap", 4))
        path = [tree_map(torch.clone, fast) for fast in found.tested.adapt(found.params, task.support, 3)]
        found.tested.predict(path[-1], task.query.x)
        assert all(a.equal(b) for a, b in zip(tree_leaves(inputs), tree_leaves(before), strict=True))
        again = list(found.tested.adapt(found.params, task.support, 3))  # nor did step 2 change what step 1 gave
        assert all(a.equal(b) for a, b in zip(tree_leaves(again), tree_leaves(path), strict=True))


def test_adapting_for_longer_passes_through_the_same_points(algo_name: str, case: Callable[..., Any]) -> None:
    found = case(algo_name)
    task = tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator())))
    short, long = (list(found.tested.adapt(found.params, task.support, steps)) for steps in (2, 5))
    assert 1 <= len(short) <= 3 and len(short) <= len(long) <= 6
    assert all(a.equal(b) for a, b in zip(tree_leaves(short), tree_leaves(long[: len(short)]), strict=True))


def test_judging_one_class_head_is_cross_entropy_and_the_share_of_hits() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    y = torch.tensor([0, 1, 1])
    loss, metrics = judge({"class": Head("class", 2)}, {"class": logits}, {"class": y})
    assert torch.allclose(loss, F.cross_entropy(logits, y))
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["loss"] == loss


def test_judging_a_value_is_the_mean_squared_error() -> None:
    loss, metrics = judge({"y": Head("value", 1)}, {"y": torch.tensor([[1.0], [4.0]])}, {"y": torch.zeros(2, 1)})
    assert loss == metrics["mse"] == 8.5
    assert "accuracy" not in metrics


def test_judging_several_heads_is_the_mean_over_those_with_a_target() -> None:
    heads = {name: Head("class", 2, gaps=True) for name in "abc"}
    outputs = {name: torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True) for name in heads}
    y = {"a": torch.tensor([0, -100]), "b": torch.tensor([0, 0]), "c": torch.tensor([-100, -100])}
    loss, metrics = judge(heads, outputs, y)
    expected = (F.cross_entropy(outputs["a"][:1], y["a"][:1]) + F.cross_entropy(outputs["b"], y["b"])) / 2
    assert torch.allclose(loss, expected)
    assert metrics["accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    loss.backward()
    assert not outputs["c"].grad.any() and not outputs["a"].grad[1].any()


def test_judging_a_class_beside_a_value() -> None:
    heads = {"digit": Head("class", 2), "angle": Head("value", 1)}
    outputs = {"digit": torch.zeros(4, 2), "angle": torch.ones(4, 1)}
    y = {"digit": torch.tensor([0, 1, 0, 1]), "angle": torch.zeros(4, 1)}
    loss, metrics = judge(heads, outputs, y)
    assert float(loss) == pytest.approx((torch.log(torch.tensor(2.0)) + 1).item() / 2)
    assert metrics["accuracy"] == 0.5


def test_the_accuracy_of_two_classes_beside_a_value_is_the_mean_of_the_two() -> None:
    heads = {"a": Head("class", 2), "angle": Head("value", 1), "b": Head("class", 2)}
    outputs = {"a": torch.eye(2), "angle": torch.ones(2, 1), "b": torch.eye(2)}
    y = {"a": torch.tensor([0, 1]), "angle": torch.zeros(2, 1), "b": torch.tensor([0, 0])}
    assert judge(heads, outputs, y)[1]["accuracy"] == (1 + 1 / 2) / 2


def test_the_last_of_a_trajectory() -> None:
    assert last(iter([{"w": THETA}, {"w": H}]))["w"] is H
