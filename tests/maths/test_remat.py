from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.engine.mapping import Parallel
from metarun.maths.inner import last, sgd
from metarun.maths.remat import recomputed
from metarun.types import Batch, Params

TASKS, ROWS, WIDTH = 3, 6, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start() -> Params:
    return {"inner": drawn(5, WIDTH), "outer": drawn(WIDTH, 4, seed=1), "fixed": drawn(4, seed=2)}


def tasks() -> Batch:
    labels = torch.randint(4, (TASKS, ROWS), generator=torch.Generator().manual_seed(4))
    return Batch(drawn(TASKS, ROWS, 5, seed=3), {"class": labels})


def loss(params: Params, support: Batch, step: int, dropout: float = 0.0) -> Tensor:
    hidden = F.dropout(torch.tanh(support.x @ params["inner"]), dropout) * (1 + step)
    return F.cross_entropy(hidden @ params["outer"] + params["fixed"], support.y["class"])


def meta_grad(parallel: Parallel, remat: bool, dropout: float = 0.0, steps: int = 4) -> Params:
    def end(params: Params, task: Batch) -> tuple[Tensor, Params]:
        def inner(params: Params, support: Batch, step: int) -> Tensor:
            return loss(params, support, step, dropout)

        fast = last(sgd(inner, params, task, 0.3, steps, ["inner", "outer"], first_order=False, remat=remat))
        return loss(fast, task, 0, dropout), {}

    torch.manual_seed(0)
    return parallel.mean_grad(end, start(), tasks())[0]


@pytest.mark.parametrize("parallel", [Parallel("loop", 1), Parallel("vmap", 2), Parallel("vmap", 3)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_changes_no_gradient(parallel: Parallel, dropout: float) -> None:
    """Not of what is adapted, of what is not, nor where numbers are drawn on the way."""
    kept, again = (meta_grad(parallel, remat, dropout) for remat in (False, True))
    assert all(torch.allclose(again[name], kept[name], rtol=1e-12) for name in kept)
    assert all(slope.abs().max() > 0 for slope in kept.values())


def test_what_is_drawn_afterwards_is_as_without_recomputing() -> None:
    after = []
    for remat in (False, True):
        meta_grad(Parallel("vmap", 3), remat, dropout=0.5)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def bytes_kept(run: Callable[[], object]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_the_arguments_alone_are_kept() -> None:
    x = drawn(100, 50).requires_grad_()

    def long(x: Tensor) -> tuple[Tensor]:
        for _ in range(20):
            x = torch.tanh(x) * 1.5
        return (x.sum(),)

    assert bytes_kept(lambda: recomputed(long, x)) == x.nbytes
    assert bytes_kept(lambda: long(x)) == 20 * x.nbytes


class Opaque(torch.autograd.Function):
    """x -> x, and nobody may ask for its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise AssertionError("this slope is computed for nothing")


def test_only_the_slopes_that_are_asked_for_are_computed() -> None:
    w, x = drawn(TASKS, 4).requires_grad_(), drawn(TASKS, 4, seed=1)

    def scaled(w: Tensor, x: Tensor) -> tuple[Tensor]:
        return ((w * Opaque.apply(x)).sum(),)

    value = torch.vmap(lambda w, x: recomputed(scaled, w, x)[0])(w, x).sum()
    assert torch.autograd.grad(value, w)[0].equal(x)
