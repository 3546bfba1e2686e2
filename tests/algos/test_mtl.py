from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.engine.mapping import Parallel
from metarun.types import Batch, Params

VMAP = Parallel("vmap", 4)


def naive(params: Params, batch: Batch, heads: list[str], plain_logits: Callable[..., Tensor]) -> list[Params]:
    """One gradient per task, task by task: the cross-entropy of its own three outputs."""
    slopes = []
    for t in range(len(batch.x)):
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        (own,) = (k for k, name in enumerate(heads) if bool((batch.y[name][t] >= 0).any()))
        logits = plain_logits(leaves, batch.x[t], batch.x[t])[:, 3 * own : 3 * own + 3]
        loss = F.cross_entropy(logits, batch.y[heads[own]][t])
        slopes.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())))))
    return slopes


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_joint_gradient_is_the_mean_of_the_tasks_own_gradients(
    norm: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    mtl = case("mtl", norm)
    heads = list(mtl.sampler.heads)
    assert len(heads) == len(mtl.sample.x) == 4
    slopes = naive(mtl.params, mtl.sample, heads, plain_logits)
    mean = {name: torch.stack([s[name] for s in slopes]).mean(0) for name in mtl.params}
    found, _ = mtl.algo.meta_grad(mtl.params, mtl.sample, VMAP)
    assert close(found, mean, 1e-9)


def test_a_head_whose_task_is_absent_gets_no_gradient_and_the_others_do(case: Callable[..., Any]) -> None:
    mtl = case("mtl", "none")
    present = Batch(mtl.sample.x[:2], {name: y[:2] for name, y in mtl.sample.y.items()})
    slope, _ = mtl.algo.meta_grad(mtl.params, present, VMAP)
    for k, y in enumerate(present.y.values()):
        rows = slice(3 * k, 3 * k + 3)
        known = bool((y >= 0).any())
        assert bool(slope["head.weight"][rows].any()) == bool(slope["head.bias"][rows].any()) == known


def test_a_row_counts_for_its_own_head_alone(case: Callable[..., Any]) -> None:
    """The gradient of a task's bias is softmax − one-hot, averaged over its own rows and over the tasks."""
    mtl = case("mtl", "none")
    slope, _ = mtl.algo.meta_grad(mtl.params, mtl.sample, VMAP)
    shared = mtl.algo.net
    for k, (name, y) in enumerate(mtl.sample.y.items()):
        (t,) = (y >= 0).any(1).nonzero()[:, 0].tolist()
        error = shared(mtl.params, mtl.sample.x[t])[name].softmax(-1) - F.one_hot(y[t], 3)
        assert torch.allclose(slope["head.bias"][3 * k : 3 * k + 3], error.mean(0) / 4, atol=1e-12)


def test_a_group_of_classes_is_a_task_with_a_head_of_its_own(case: Callable[..., Any]) -> None:
    mtl = case("mtl")
    assert list(mtl.sampler.heads) == ["g0", "g1", "g2", "g3"]
    assert mtl.params["head.weight"].shape == (12, 4)
    known = torch.stack([y >= 0 for y in mtl.sample.y.values()])
    assert (known.sum(0) == 1).all()  # every row has one target
