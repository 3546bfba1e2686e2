"""What is measured, which way is better, and how it is shown. `digit/accuracy` is the accuracy of the head `digit`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """What is known of a metric, whatever head it is of."""

    sign: int  # 1: more is better, -1: less is better
    percent: bool  # how it is shown; files hold fractions
    words: str  # at an axis
    is_loss: bool  # what a regression descends: the loss beside it repeats it
    aside: bool = False  # files and TensorBoard have it, tables do not


TABLE = {
    "accuracy": Metric(sign=1, percent=True, words="accuracy", is_loss=False),
    "mse": Metric(sign=-1, percent=False, words="mean squared error", is_loss=True),
    "loss": Metric(sign=-1, percent=False, words="loss", is_loss=True),
    "f1": Metric(sign=1, percent=True, words="macro F1", is_loss=False, aside=True),
    "r2": Metric(sign=1, percent=False, words="R²", is_loss=False, aside=True),
    "calibration": Metric(sign=-1, percent=True, words="expected calibration error", is_loss=False, aside=True),
}
OF_THE_RUN = ("lr", "tasks_per_s", "memory_mb")  # logged beside metrics, and not of predictions


@dataclass(frozen=True)
class Score:
    """A mean over tasks with the half width of its 95% confidence interval; NaN for what is not known."""

    mean: float
    ci95: float
    tasks: int


def metric(name: str) -> Metric:
    """The metric that the last part of a name tells; what an algorithm measures of its own is a plain number."""
    last = name.rpartition("/")[2]
    return TABLE.get(last) or Metric(sign=1, percent=False, words=last, is_loss=False)


def scores(judged: dict[str, Any]) -> dict[str, Score]:
    """`test`, `val` or a row of `by_step` of a result, flat: first the overall metrics, then `head/metric` of each."""
    groups = {"": judged} | {f"{head}/": own for head, own in (judged.get("heads") or {}).items()}
    return {
        f"{head}{name}": _score(found)
        for head, own in groups.items()
        for name, found in own.items()
        if isinstance(found, dict) and (head, name) != ("", "heads")
    }


def by_step(test: dict[str, Any]) -> dict[int, dict[str, Score]]:
    """The scores after each reported number of adaptation steps that was really taken."""
    taken = test.get("adapt_steps", math.inf)
    return {row["step"]: scores(row) for row in test["by_step"] if row["step"] <= taken}


def telling(names: Iterable[str]) -> list[str]:
    """The metrics among names, without those that stand aside or repeat others.

    An overall loss repeats a squared error that stands alone beside it, and an overall metric that only one head has
    repeats that head's. The loss of a head that has another metric is left out too.
    """
    known = [name for name in names if name not in OF_THE_RUN and not metric(name).aside]

    def repeats(name: str) -> bool:
        head, _, last = name.rpartition("/")
        beside = [other for other in known if other.rpartition("/")[0] == head and not other.endswith("loss")]
        if last == "loss":
            return beside != [] and (head != "" or all(metric(other).is_loss for other in beside))
        return head == "" and sum(other.endswith(f"/{name}") for other in known) == 1

    return [name for name in known if not repeats(name)]


def title(name: str) -> str:
    """`digit accuracy (%)`: the head of a column, whose cells have no unit."""
    return name.replace("/", " ") + _unit(name)


def axis(name: str) -> str:
    """`ink mean squared error`: the same with room for words."""
    head = name.rpartition("/")[0]
    return f"{head} {metric(name).words}".lstrip() + _unit(name)


def scaled(name: str, value: float) -> float:
    """The number to show under a title or at an axis."""
    return 100 * value if metric(name).percent else value


def cell(name: str, mean: float, ci95: float = math.nan, sign: str = "") -> str:
    """`98.70 ± 0.30`, or the mean alone where there is no interval; `sign="+"` shows that of a positive mean too."""
    told = _digits(name, mean, 2, 4, sign)
    return told if math.isnan(ci95) else f"{told} ± {_digits(name, ci95, 2, 4, like=mean)}"


def word(name: str, value: float) -> str:
    """`87.3%` or `0.500`: one number in a line of text."""
    return _digits(name, value, 1, 3) + ("%" if metric(name).percent else "")


def _score(summary: dict[str, Any]) -> Score:
    return Score(_number(summary["mean"]), _number(summary.get("ci95")), int(summary.get("tasks") or 0))


def _number(value: float | None) -> float:
    """JSON has no NaN: files hold null instead."""
    return math.nan if value is None else float(value)


def _unit(name: str) -> str:
    return " (%)" if metric(name).percent else ""


def _digits(name: str, value: float, of_percent: int, of_number: int, sign: str = "", like: float | None = None) -> str:
    """With that many decimals; a number whose decimals would be all zeros, or too many to read, as 1.23e-05. An
    interval is written `like` the number that it surrounds."""
    if metric(name).percent:
        return f"{100 * value:{sign}z.{of_percent}f}"
    size = abs(value if like is None else like)
    form = "f" if size == 0 or 0.001 <= size < 1000 else "g"
    return f"{value:{sign}z.{of_number}{form}}"
