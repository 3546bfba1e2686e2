"""DWA: a loss that falls slower than the others gets more weight.

    r_h = (mean loss of the last period) / (mean loss of the one before it),   w = softmax(r / `temperature`)

A period is `period` steps, where the paper has an epoch. Until two are over all weights are the same. A head that was
absent for a whole period keeps its last mean. The paper's weights sum to H.

Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention. CVPR 2019, arXiv 1803.10704.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import MEMORY, Count, Params, Positive

SUMS, SEEN, LAST, BEFORE = (f"{MEMORY}dwa.{name}" for name in ("sums", "seen", "last", "before"))
STEPS = f"{MEMORY}dwa.steps"  # of this period


@dataclass(frozen=True)
class DWA:
    temperature: Positive
    period: Count

    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {STEPS: torch.zeros(()), **{name: torch.zeros(tasks) for name in (SUMS, SEEN, LAST, BEFORE)}}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        known = kept[BEFORE] != 0
        rates = torch.where(known, kept[LAST] / torch.where(known, kept[BEFORE], 1.0), 1.0)
        weights = (rates / self.temperature).masked_fill(losses.isnan(), -torch.inf).softmax(0)
        return weights, self._noted(losses, kept)

    def _noted(self, losses: Tensor, kept: Params) -> Params:
        """The losses added to this period's, which may end with them."""
        there = ~losses.isnan()
        sums, seen = kept[SUMS] + torch.where(there, losses, 0.0), kept[SEEN] + there
        steps = kept[STEPS] + 1
        over = steps >= self.period
        known = over & (seen > 0)
        return {
            SUMS: torch.where(over, 0.0, sums),
            SEEN: torch.where(over, 0.0, seen),
            STEPS: torch.where(over, 0.0, steps),
            LAST: torch.where(known, sums / seen.clamp(min=1), kept[LAST]),
            BEFORE: torch.where(known, kept[LAST], kept[BEFORE]),
        }
