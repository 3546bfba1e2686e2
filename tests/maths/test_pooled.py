"""Metrics of all queries together, held against scikit-learn and against loops written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from torch import Tensor

from metarun.maths.pooled import BINS, tallies, together
from metarun.types import Head

TASKS, ROWS, CLASSES = 6, 40, 4
HELD = torch.ones(TASKS, dtype=torch.bool)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [T, B, C] that know something of the classes [T, B]; the last class is rare."""
    dice = torch.Generator().manual_seed(seed)
    y = (torch.rand(TASKS, ROWS, generator=dice).square() * CLASSES).long()
    logits = torch.randn(TASKS, ROWS, CLASSES, generator=dice, dtype=torch.float64)
    return logits + 1.5 * torch.nn.functional.one_hot(y, CLASSES), y


def score(head: Head, output: Tensor, y: Tensor, held: Tensor = HELD) -> dict[str, Any]:
    """Mapped over tasks as evaluation does it, then put together."""

    def one(output: Tensor, y: Tensor, held: Tensor) -> dict[str, Tensor]:
        return tallies({"it": head}, {"it": output}, {"it": y}, held)

    return {name: together(name, tally) for name, tally in torch.vmap(one)(output, y, held).items()}


def plain_calibration(logits: Tensor, y: Tensor) -> float:
    """Bin by bin, query by query."""
    confidence, chosen = logits.softmax(-1).max(-1)
    total = 0.0
    for b in range(BINS):
        inside = [i for i in range(len(y)) if b / BINS < confidence[i] <= (b + 1) / BINS]
        if inside:
            right = sum(float(chosen[i] == y[i]) for i in inside) / len(inside)
            sure = sum(float(confidence[i]) for i in inside) / len(inside)
            total += len(inside) / len(y) * abs(right - sure)
    return total


def test_macro_f1_is_that_of_all_queries_by_scikit_learn() -> None:
    logits, y = drawn()
    expected = f1_score(y.flatten(), logits.argmax(-1).flatten(), average="macro")
    assert score(Head("class", CLASSES), logits, y)["f1"]["mean"] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_was_neither_said_nor_there_is_none_of_macro_f1() -> None:
    logits, y = drawn()
    wider = torch.cat([logits, torch.full_like(logits[..., :1], -9.0)], -1)
    assert score(Head("class", CLASSES + 1), wider, y)["f1"] == score(Head("class", CLASSES), logits, y)["f1"]


def test_classes_that_each_task_deals_anew_have_no_macro_f1() -> None:
    logits, y = drawn()
    assert set(score(Head("class", CLASSES, fresh=True), logits, y)) == {"calibration"}


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    logits, y = drawn()
    found = score(Head("class", CLASSES), logits, y)["calibration"]["mean"]
    assert found == pytest.approx(plain_calibration(logits.flatten(0, 1), y.flatten()), abs=1e-12)
    assert found > 0.01


def test_who_is_sure_and_right_is_calibrated_and_who_is_sure_and_wrong_is_not() -> None:
    y = torch.zeros(TASKS, ROWS, dtype=torch.int64)
    sure = torch.tensor([99.0, 0.0]).expand(TASKS, ROWS, 2)
    assert score(Head("class", 2), sure, y)["calibration"]["mean"] == 0.0
    assert score(Head("class", 2), sure.flip(-1), y)["calibration"]["mean"] == 1.0


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_r2_is_that_of_all_queries_by_scikit_learn_also_where_targets_are_far_from_zero(offset: float) -> None:
    dice = torch.Generator().manual_seed(1)
    y = torch.randn(TASKS, ROWS, 2, generator=dice) * torch.tensor([1.0, 3.0]) + offset
    y = y + torch.arange(TASKS)[:, None, None]  # each task has a mean of its own
    output = y + torch.randn(y.shape, generator=dice)
    expected = r2_score(y.flatten(0, 1).double(), output.flatten(0, 1).double())
    assert score(Head("value", 2), output, y)["r2"]["mean"] == pytest.approx(expected, abs=2e-5)


def test_values_that_do_not_vary_have_no_r2() -> None:
    assert math.isnan(score(Head("value", 1), torch.rand(TASKS, ROWS, 1), torch.ones(TASKS, ROWS, 1))["r2"]["mean"])


def test_queries_without_a_target_count_for_nothing() -> None:
    logits, y = drawn()
    y = torch.where(torch.arange(ROWS) < 30, y, -100)
    y[0] = -100
    head = Head("class", CLASSES, gaps=True)
    found = score(head, logits, y)
    some, known = logits[1:, :30].flatten(0, 1), y[1:, :30].flatten()
    assert found["f1"]["mean"] == pytest.approx(f1_score(known, some.argmax(-1), average="macro"), abs=1e-12)
    assert found["calibration"]["mean"] == pytest.approx(plain_calibration(some, known), abs=1e-12)
    assert found["f1"]["tasks"] == found["calibration"]["tasks"] == TASKS - 1
    values, output = torch.randn(TASKS, ROWS, 1), torch.randn(TASKS, ROWS, 1)
    values[:, 30:] = math.nan
    expected = r2_score(values[:, :30].flatten(), output[:, :30].flatten())
    assert score(Head("value", 1, gaps=True), output, values)["r2"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_a_task_that_diverged_is_wrong_in_every_query_and_has_neither_confidence_nor_error() -> None:
    logits, y = drawn()
    held = torch.arange(TASKS) > 0
    logits[0] = math.nan
    found = score(Head("class", CLASSES), logits, y, held)
    said = logits.argmax(-1)
    said[0] = CLASSES  # none of the classes
    expected = f1_score(y.flatten(), said.flatten(), average="macro", labels=range(CLASSES))
    assert found["f1"]["mean"] == pytest.approx(expected, abs=1e-12)
    assert found["calibration"]["mean"] == pytest.approx(
        plain_calibration(logits[1:].flatten(0, 1), y[1:].flatten()), abs=1e-12
    )
    values, output = torch.randn(TASKS, ROWS, 1), torch.randn(TASKS, ROWS, 1)
    output[0] = math.inf
    r2 = score(Head("value", 1), output, values, held)["r2"]
    assert r2["mean"] == pytest.approx(r2_score(values[1:].flatten(), output[1:].flatten()), abs=1e-5)
    assert r2["tasks"] == TASKS - 1


def test_the_interval_covers_the_truth_in_about_95_of_100_exams() -> None:
    """Values with R² = 1 − 1/4 in truth, in tasks of ten."""
    hits = 0
    for seed in range(200):
        dice = torch.Generator().manual_seed(seed)
        y = 2 * torch.randn(30, 10, 1, generator=dice)
        output = y + torch.randn(y.shape, generator=dice)
        found = score(Head("value", 1), output, y, torch.ones(30, dtype=torch.bool))["r2"]
        hits += abs(found["mean"] - 0.75) <= found["ci95"]
    assert 180 <= hits <= 198


def test_one_task_has_no_interval() -> None:
    logits, y = drawn()
    found = score(Head("class", CLASSES), logits[:1], y[:1], HELD[:1])["f1"]
    assert math.isnan(found["ci95"]) and found["tasks"] == 1


def test_several_heads_have_their_own() -> None:
    logits, y = drawn()
    heads = {"kind": Head("class", CLASSES), "size": Head("value", 1)}
    found = tallies(
        heads, {"kind": logits[0], "size": logits[0, :, :1]}, {"kind": y[0], "size": y[0, :, None]}, HELD[0]
    )
    assert set(found) == {"kind/calibration", "kind/f1", "size/r2"}
