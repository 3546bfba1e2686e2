"""A task of few ways or shots is filled up with rows of no class, and is learned as if they were not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.construct import hints_of
from metarun.engine.mapping import Parallel
from metarun.types import Batch, Head

GAPS = {"class": Head("class", 3, gaps=True)}


@pytest.fixture
def found(algo_name: str, case: Callable[..., Any]) -> Any:
    """On a small network without batch norm; where mini-batches are taken of the support set, all of it is one."""
    made = case(algo_name, "none")
    changes: dict[str, Any] = {"net": replace(made.tested.net, heads=GAPS)}
    if "inner_batch" in hints_of(type(made.tested)):
        changes["inner_batch"] = 99
    return made._replace(tested=replace(made.tested, **changes))


def padded(batch: Batch) -> Batch:
    """With the first of its rows once more, without their class."""
    y = batch.y["class"]
    return Batch(torch.cat([batch.x, batch.x[:2]]), {"class": torch.cat([y, torch.full_like(y[:2], -100)])})


def logits(found: Any, support: Batch, x: Tensor) -> Tensor:
    *_, fast = found.tested.adapt(found.params, support, 2)
    return found.tested.predict(fast, x)["class"]


def test_rows_of_no_class_change_nothing_that_is_learned(found: Any) -> None:
    support, query = tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator().manual_seed(0))))
    one, other = (logits(found, s, query.x) for s in (support, padded(support)))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9) and one.std() > 1e-6


def test_a_meta_step_on_tasks_of_many_sizes_is_the_same_beneath_vmap(
    algo_name: str, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    made = case(algo_name, "batch", ways=(2, 3), shots=(1, 2))
    if "support" not in getattr(made.sample, "_fields", ()):
        pytest.skip("it trains on no episodes")
    assert (made.sample.support.y["class"] < 0).any()
    (slope, metrics), (looped, _) = (
        made.algo.meta_grad(made.params, made.sample, parallel)
        for parallel in (Parallel("vmap", 4), Parallel("loop", 1))
    )
    assert close(slope, looped, 1e-8) and metrics["loss"].isfinite()
