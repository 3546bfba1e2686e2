"""Metrics of all queries together, which are no means over tasks: macro F1, calibration error, R².

Every task is tallied where it is judged, beneath vmap; what the tallies say together is told at the end, on the CPU.

    f1            mean over classes of 2 · hits / (said + there)    of the classes that were said or were there
    calibration   Σ_b |right_b − confidence_b| / queries            over bins b of equal width of the confidence
    r2            1 − Σ (output − y)² / Σ (y − mean of y)²          mean over a head's values
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metarun.types import Heads, Outputs, Targets

BINS = 15  # of confidence
RESAMPLES = 500  # of tasks, for an interval
SEED = 0


def tallies(heads: Heads, outputs: Outputs, y: Targets, held: Tensor) -> dict[str, Tensor]:
    """Counts of one task by metric, or `head/metric` of several heads; a query without a target counts for nothing.

    Where `held` is false the outputs are no numbers: then every query is wrong, and has neither confidence nor error.
    """
    found = {}
    for name, head in heads.items():
        place, output, target = f"{name}/" if len(heads) > 1 else "", outputs[name].detach(), y[name]
        if head.kind == "value":
            found[f"{place}r2"] = _errors(output, target, held)
            continue
        if not head.fresh:
            found[f"{place}f1"] = _classes(output, target, held)
        found[f"{place}calibration"] = _confidences(output, target, held)
    return found


def together(name: str, tally: Tensor) -> dict[str, float | int]:
    """The metric of all tasks' tallies [T, ...], with 1.96 standard deviations of what tasks drawn anew would give.

    Tasks are drawn from these with replacement (a bootstrap), always the same. One task has no interval.
    """
    score = SCORES[name.rpartition("/")[2]]
    tally = _additive(name, tally.double())
    tally = tally[(tally[:, 0] > 0).any(-1)]  # of tasks with a query that counts
    value, tasks = float(score(tally.sum(0))), len(tally)
    if tasks < 2:
        return {"mean": value, "ci95": math.nan, "tasks": tasks}
    lots = torch.randint(tasks, (RESAMPLES, tasks), generator=torch.Generator().manual_seed(SEED))
    times = torch.zeros(lots.shape, dtype=tally.dtype).scatter_add_(1, lots, tally.new_ones(lots.shape))
    drawn = score((times @ tally.flatten(1)).unflatten(1, tally.shape[1:]))
    return {"mean": value, "ci95": 1.96 * float(drawn.std()), "tasks": tasks}


def _classes(output: Tensor, y: Tensor, held: Tensor) -> Tensor:
    """Of each class how often it was there, was said, and was said rightly: [3, C]."""
    there = (y >= 0).to(output.dtype)
    said, chosen, target = there * held, output.argmax(-1), y.clamp(min=0)
    none = output.new_zeros(output.shape[-1])
    hits = none.scatter_add(0, target, said * (chosen == y))
    return torch.stack([none.scatter_add(0, target, there), none.scatter_add(0, chosen, said), hits])


def _confidences(output: Tensor, y: Tensor, held: Tensor) -> Tensor:
    """Of each bin its queries, the sum of their confidences, and how many are right: [3, BINS]."""
    known = (y >= 0) & held
    confidence, chosen = output.softmax(-1).max(-1)
    confidence = torch.where(known, confidence, 0.0)
    place = ((confidence * BINS).ceil() - 1).clamp(min=0)
    member = ((place[:, None] == torch.arange(BINS, device=y.device)) & known[:, None]).to(output.dtype)
    return torch.stack([member.sum(0), confidence @ member, (chosen == y).to(member.dtype) @ member])


def _errors(output: Tensor, y: Tensor, held: Tensor) -> Tensor:
    """Of each value how many there are, their mean, their squares around it, and the squared errors: [4, size]."""
    known = (~y.isnan().any(-1) & held)[:, None]
    count = known.sum().to(output.dtype)
    mean = torch.where(known, y, 0.0).sum(0) / count.clamp(min=1)
    parts = (torch.where(known, part.square(), 0.0).sum(0) for part in (y - mean, output - y))
    return torch.stack([count.expand_as(mean), mean, *parts])


def _additive(name: str, tally: Tensor) -> Tensor:
    """What may be summed over tasks: of values the moments around the mean of all, so that no digits cancel."""
    if not name.endswith("r2"):
        return tally
    count, mean, square, error = tally.unbind(1)  # [T, size]
    off = mean - (count * mean).sum(0) / count.sum(0).clamp(min=1)
    return torch.stack([count, count * off, square + count * off.square(), error], 1)


def _f1(tally: Tensor) -> Tensor:
    there, said, hits = tally.unbind(-2)
    total = said + there
    return (2 * hits / total.clamp(min=1)).sum(-1) / (total > 0).sum(-1)


def _calibration(tally: Tensor) -> Tensor:
    count, confidence, right = tally.unbind(-2)
    return (right - confidence).abs().sum(-1) / count.sum(-1)


def _r2(tally: Tensor) -> Tensor:
    count, first, square, error = tally.unbind(-2)
    spread = square - first.square() / count
    return torch.where(spread > 0, 1 - error / spread, math.nan).mean(-1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"f1": _f1, "calibration": _calibration, "r2": _r2}
