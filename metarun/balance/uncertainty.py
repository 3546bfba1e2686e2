"""Uncertainty: each loss is divided by the variance of its noise, which is learned beside the network.

    L = 1/H Σ_h (exp(−s_h) L_h + s_h),   w_h = exp(−s_h) / H

s, the logarithms of the variances, begin at 0, so that the first step is that of equal weights; the outer optimiser
moves them with all else. For a loss that stays, w_h comes to rest at 1 / (H L_h). The paper has ½ before the exp(−s) of
a squared error, or before s with a cross-entropy; here all losses are treated alike. An absent head's s stays.

Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics.
CVPR 2018, arXiv 1705.07115.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import Params

LOGS = "uncertainty.logs"


@dataclass(frozen=True)
class Uncertainty:
    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {LOGS: torch.zeros(tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        there = ~losses.isnan()
        weights = there * (-kept[LOGS]).exp() / there.sum()
        return weights, {LOGS: torch.where(there, 1 / there.sum() - weights * losses, 0.0)}
