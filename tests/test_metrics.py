"""The one table of metrics: direction, words and numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metarun.metrics import Score, axis, by_step, cell, metric, scores, telling, title, word


def summary(mean: float | None, tasks: int = 9) -> dict[str, Any]:
    return {"mean": mean, "ci95": None if mean is None else 0.01, "tasks": tasks}


def test_a_head_does_not_change_what_is_better() -> None:
    assert [metric(name).sign for name in ("accuracy", "loss/accuracy", "mse", "accuracy/mse", "a/b/loss")] == [
        *(1, 1, -1, -1, -1)
    ]


def test_scores_are_overall_first_and_then_by_head() -> None:
    judged = {
        **{"loss": summary(1.0), "step": 7, "adapt_steps": 3, "by_step": [{"step": 0}]},
        "heads": {"mean": {"accuracy": summary(0.5)}, "by_step": {"mse": summary(None)}},
    }
    found = scores(judged)
    assert list(found) == ["loss", "mean/accuracy", "by_step/mse"]
    assert found["mean/accuracy"] == Score(0.5, 0.01, 9)
    assert math.isnan(found["by_step/mse"].mean) and math.isnan(found["by_step/mse"].ci95)


def test_what_an_algorithm_measures_of_its_own_is_a_score_as_a_plain_number() -> None:
    assert list(scores({"accuracy": summary(0.5), "changed": summary(0.25), "tasks": 9})) == ["accuracy", "changed"]
    assert (cell("changed", 0.25, 0.01), title("changed"), axis("changed")) == ("0.2500 ± 0.0100", "changed", "changed")


def test_steps_beyond_the_last_that_was_taken_are_left_out() -> None:
    test: dict[str, Any] = {"by_step": [{"step": step, "accuracy": summary(step / 10)} for step in (0, 1, 2, 5)]}
    assert list(by_step(test)) == [0, 1, 2, 5]
    assert {step: row["accuracy"].mean for step, row in by_step(test | {"adapt_steps": 1}).items()} == {0: 0.0, 1: 0.1}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["loss", "accuracy"], ["loss", "accuracy"]),
        (["loss", "mse"], ["mse"]),  # what a regression descends is its squared error
        (["loss"], ["loss"]),
        (["loss", "accuracy", "mse"], ["loss", "accuracy", "mse"]),  # the loss is of both
        (["lr", "accuracy", "tasks_per_s", "memory_mb"], ["accuracy"]),
        (["accuracy", "f1", "calibration", "a/r2"], ["accuracy"]),  # which stand aside
        (["accuracy", "changed"], ["accuracy", "changed"]),  # which an algorithm measures of its own
        (["a/loss", "a/accuracy", "b/loss"], ["a/accuracy", "b/loss"]),
        (["accuracy", "a/accuracy", "b/mse"], ["a/accuracy", "b/mse"]),
        (["accuracy", "a/accuracy", "b/accuracy"], ["accuracy", "a/accuracy", "b/accuracy"]),
    ],
)
def test_metrics_that_repeat_others_are_left_out(names: list[str], told: list[str]) -> None:
    assert telling(names) == told


def test_names_for_columns_and_axes() -> None:
    assert [title(name) for name in ("digit/accuracy", "mse")] == ["digit accuracy (%)", "mse"]
    assert [axis(name) for name in ("accuracy", "ink/mse")] == ["accuracy (%)", "ink mean squared error"]


@pytest.mark.parametrize(
    ("name", "mean", "ci", "shown"),
    [
        ("digit/accuracy", 0.98701, 0.003, "98.70 ± 0.30"),
        ("accuracy", -0.00001, math.nan, "0.00"),  # no minus zero
        ("mse", 0.25, 0.01, "0.2500 ± 0.0100"),
        ("loss", 0.00001234, math.nan, "1.234e-05"),
        ("mse", 123456.0, 0.0, "1.235e+05 ± 0"),
        ("mse", 0.0044, 0.0001642, "0.0044 ± 0.0002"),
        ("mse", math.nan, math.nan, "nan"),
    ],
)
def test_cells(name: str, mean: float, ci: float, shown: str) -> None:
    assert cell(name, mean, ci) == shown


def test_a_difference_shows_its_sign() -> None:
    assert [cell("accuracy", 0.01, sign="+"), cell("mse", -0.5, 0.25, "+")] == ["+1.00", "-0.5000 ± 0.2500"]


def test_words_carry_their_unit() -> None:
    assert [word("accuracy", 0.8731), word("loss", 0.5), word("mse", 12345.0)] == ["87.3%", "0.500", "1.23e+04"]
