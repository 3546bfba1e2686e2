"""FAMO: all losses are to fall at the same rate, at the cost of one number kept for each.

    z = softmax(ξ),   w_h = c z_h / (L_h − b_h),   c = 1 / Σ z_h / (L_h − b_h)
    ξ ← Adam step of rate β on  Σ_h (log(L_h − b_h) before − after) ∂z_h/∂ξ + γ ξ

β is `rate`, γ is `decay`, b is `floor`, the least that a loss can be. The paper evaluates each batch a second time,
after the step, to see how far its losses fell; here `after` is the loss of the next step's batch, so no pass is added.
Losses count by their logarithm, so they have to be positive.

Liu, Feng, Stone, Liu: FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023, arXiv 2306.03792.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import Params, Rate

LOGITS, LOGS, FIRST, SECOND, STEPS = (f"memory.famo.{name}" for name in ("logits", "logs", "first", "second", "steps"))
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class FAMO:
    rate: Rate
    decay: Rate
    floor: float

    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        zeros = {name: torch.zeros(tasks) for name in (LOGITS, FIRST, SECOND)}
        return {**zeros, LOGS: torch.full((tasks,), math.nan), STEPS: torch.zeros(())}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        above = (losses - self.floor).clamp(min=EPS)
        logs, before = above.log(), kept[LOGS]
        entries = {**self._moved(kept, before - logs), LOGS: torch.where(logs.isnan(), before, logs)}
        parts = torch.where(logs.isnan(), 0.0, entries[LOGITS].softmax(0) / above)
        return parts / parts.sum(), entries

    def _moved(self, kept: Params, fallen: Tensor) -> Params:
        """Adam's step on the logits: a loss that fell faster than the others, weighed by z, gets less weight. One that
        has not been seen twice (NaN) is none of the others."""
        known, z = ~fallen.isnan(), kept[LOGITS].softmax(0)
        z, fallen = z * known, torch.where(known, fallen, 0.0)
        usual = (z * fallen).sum() / z.sum().clamp(min=EPS)
        slope = z * (fallen - usual) + self.decay * kept[LOGITS]
        first = BETAS[0] * kept[FIRST] + (1 - BETAS[0]) * slope
        second = BETAS[1] * kept[SECOND] + (1 - BETAS[1]) * slope.square()
        steps = kept[STEPS] + known.any()  # none for the first losses, which fell from nowhere
        bias = [1 - beta ** steps.clamp(min=1) for beta in BETAS]
        moved = kept[LOGITS] - self.rate * first / bias[0] / ((second / bias[1]).sqrt() + EPS)
        return {LOGITS: moved, FIRST: first, SECOND: second, STEPS: steps}
