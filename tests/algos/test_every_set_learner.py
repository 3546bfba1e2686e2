"""Learners that hold no output layer make one of a task's support set, which is a set of named things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.types import Batch, Episode


def scores(found: Any, support: Batch, x: Tensor) -> Tensor:
    *_, fast = found.algo.adapt(found.params, support, 3)
    return found.algo.predict(fast, x)["class"]


@pytest.fixture
def found(algo_name: str, case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes."""
    made = case(algo_name, "none")
    if any("head." in name for name in made.params):
        pytest.skip("it holds an output layer, whose rows have names of their own")
    return made


@pytest.fixture
def task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


def test_the_order_of_support_rows_changes_nothing(found: Any, task: Episode) -> None:
    order = torch.randperm(len(task.support.x), generator=torch.Generator().manual_seed(1))
    mixed = tree_map(lambda t: t[order], task.support)
    one, other = (scores(found, s, task.query.x) for s in (task.support, mixed))
    assert torch.allclose(one, other, atol=1e-12)


def test_renaming_the_classes_renames_the_logits(found: Any, task: Episode) -> None:
    names = torch.tensor([2, 0, 1])
    renamed = Batch(task.support.x, {"class": names[task.support.y["class"]]})
    one, other = (scores(found, s, task.query.x) for s in (task.support, renamed))
    assert torch.allclose(other[:, names], one, atol=1e-12) and not torch.allclose(other, one)


def test_a_class_without_a_support_row_is_chosen_for_no_query(found: Any, task: Episode) -> None:
    y = task.support.y["class"]
    logits = scores(found, Batch(task.support.x, {"class": y.masked_fill(y == 1, -100)}), task.query.x)
    assert logits.isfinite().all() and (logits.argmax(-1) != 1).all()
    assert (logits[:, 1] < logits[:, [0, 2]].min(1).values - 10).all()


def test_rows_without_a_target_count_for_nothing(found: Any, task: Episode) -> None:
    y = F.pad(task.support.y["class"], (len(task.query.x), 0), value=-100)
    padded = Batch(torch.cat([task.query.x, task.support.x]), {"class": y})
    one, other = (scores(found, s, task.query.x) for s in (task.support, padded))
    assert torch.allclose(one, other, atol=1e-12)
