"""Means with 95% confidence intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_t(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95% interval, t₀.₉₇₅(n-1) · s / √n; NaN for a single value."""
    mean = fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan
    return mean, t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_975(freedom: int) -> float:
    """The t with P(|T| ≤ t) = 0.95, by bisection of θ = atan(t / √freedom)."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| ≤ √ν tan θ): for whole ν a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    cos = math.cos(angle)
    odd = freedom % 2
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
