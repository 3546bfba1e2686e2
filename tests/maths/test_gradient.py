from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.maths.gradient import gradient
from metarun.types import Params

TASKS, ROWS, WIDTH = 3, 6, 4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(params: Params, x: Tensor) -> Tensor:
    return (torch.tanh(x @ params["own"]) @ params["fixed"]).square().mean()


def by_torch_func(loss: Callable[..., Tensor], params: Params, adapted: list[str], *args: Tensor) -> Params:
    """The plain formula."""
    fixed = {name: p for name, p in params.items() if name not in adapted}
    return torch.func.grad(lambda own: loss({**fixed, **own}, *args))({name: params[name] for name in adapted})


@pytest.fixture
def params() -> Params:
    """Of each task its own, and one that all share."""
    return {"own": drawn(TASKS, 5, WIDTH, seed=0).requires_grad_(), "fixed": drawn(WIDTH, seed=1).requires_grad_()}


@pytest.fixture
def x() -> Tensor:
    return drawn(TASKS, ROWS, 5, seed=2)


def mapped(slope_of: Callable[..., Params], params: Params, x: Tensor, shared: bool = False) -> Tensor:
    """The slope of every task: [T, 5, WIDTH]."""
    if shared:
        params = {**params, "own": params["own"][0]}

    def one(own: Tensor, x: Tensor) -> Tensor:
        return slope_of(loss, {**params, "own": own}, ["own"], x)["own"]

    return torch.vmap(one, in_dims=(None if shared else 0, 0))(params["own"], x)


@pytest.mark.parametrize("shared", [True, False])
def test_the_slope_of_every_task_and_its_derivative_are_torch_funcs(params: Params, x: Tensor, shared: bool) -> None:
    ours, plain = (mapped(way, params, x, shared) for way in (gradient, by_torch_func))
    assert torch.allclose(ours, plain, rtol=1e-12)
    push = drawn(*ours.shape, seed=3)
    leaves = list(params.values())
    for one, other in zip(*(torch.autograd.grad(s, leaves, push) for s in (ours, plain)), strict=True):
        assert torch.allclose(one, other, rtol=1e-12) and other.abs().max() > 0


@pytest.mark.parametrize("shared", [True, False])
def test_without_gradients_the_slope_is_the_same_constant(params: Params, x: Tensor, shared: bool) -> None:
    """Also of what has a history itself, as the φ of a second step has."""
    moved = {**params, "own": params["own"] * 2}
    with torch.no_grad():
        constant = mapped(gradient, moved, x, shared)
    assert not constant.requires_grad
    assert torch.allclose(constant, mapped(by_torch_func, moved, x, shared), rtol=1e-12)


def test_one_task_alone_and_mapped_have_the_same_slope(params: Params, x: Tensor) -> None:
    together = mapped(gradient, params, x)
    for task in range(TASKS):
        alone = gradient(loss, {**params, "own": params["own"][task]}, ["own"], x[task])["own"]
        assert torch.allclose(alone, together[task], rtol=1e-12)


def test_a_task_whose_loss_is_no_number_leaves_the_others_alone(params: Params, x: Tensor) -> None:
    broken = x.clone()
    broken[1] = float("nan")
    slope = mapped(gradient, params, broken)
    assert slope[1].isnan().all() and torch.equal(slope[[0, 2]], mapped(gradient, params, x)[[0, 2]])


def test_what_the_loss_does_not_see_has_slope_zero(params: Params, x: Tensor) -> None:
    def one(own: Tensor, unseen: Tensor, x: Tensor) -> Params:
        return gradient(loss, {**params, "own": own, "unseen": unseen}, ["own", "unseen"], x)

    slope = torch.vmap(one)(params["own"], drawn(TASKS, 2, seed=4), x)
    assert slope["unseen"].equal(torch.zeros(TASKS, 2, dtype=torch.float64)) and slope["own"].abs().max() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("differentiated", [False, True])
def test_images_are_laid_out_channels_last_unless_the_slope_is_itself_differentiated(
    channels: int, differentiated: bool
) -> None:
    images = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    seen: list[Tensor] = []

    def loss(params: Params, x: Tensor) -> Tensor:
        seen.append(x)
        return (params["w"] * x).sum()

    with torch.set_grad_enabled(differentiated):
        found = gradient(loss, {"w": torch.ones((), dtype=torch.float64)}, ["w"], images)
    torch.testing.assert_close(found["w"], images.sum())
    assert seen[0].equal(images)
    assert (seen[0].stride(1) == 1) is not differentiated


@pytest.mark.parametrize("shared", [True, False])
def test_a_tensor_of_the_task_that_the_loss_closes_over_is_its_own_tasks(
    params: Params, x: Tensor, shared: bool
) -> None:
    own = params["own"][0] if shared else params["own"]

    def one(own: Tensor, x: Tensor) -> Tensor:
        return gradient(lambda params: loss(params, x), {**params, "own": own}, ["own"])["own"]

    closed = torch.vmap(one, in_dims=(None if shared else 0, 0))(own, x)
    assert torch.allclose(closed, mapped(by_torch_func, params, x, shared), rtol=1e-12)


@pytest.mark.parametrize("beneath_vmap", [True, False])
def test_an_entry_made_of_another_has_a_slope_of_its_own(beneath_vmap: bool) -> None:
    """a·b with b = 2a: by a it is b, and not the 4a of both together."""

    def slope(a: Tensor) -> Params:
        return gradient(lambda params: params["a"] * params["b"], {"a": a, "b": 2 * a}, ["a", "b"])

    a = torch.tensor([3.0, 5.0], requires_grad=True)
    found = torch.vmap(slope)(a) if beneath_vmap else {n: torch.stack([slope(one)[n] for one in a]) for n in "ab"}
    assert found["a"].tolist() == [6, 10] and found["b"].tolist() == [3, 5]
    assert torch.autograd.grad(found["a"].sum(), a)[0].tolist() == [2, 2]  # and a graph that knows how b was made
