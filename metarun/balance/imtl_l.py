"""IMTL-L: all weighed losses are to be equally large, by a scale for each that is learned beside the network.

    L = 1/H Σ_h (exp(s_h) L_h − s_h),   w_h = exp(s_h) / H

s begins at 0, so that the first step is that of equal weights; the outer optimiser moves it with all else. At rest
exp(s_h) L_h = 1 for all h. With −s for s it is the objective of `uncertainty`, reached from another thought; the two
differ only by what an optimiser does with the sign. An absent head's s stays.

Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang: Towards Impartial Multi-task Learning. ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import Params

SCALES = "imtl_l.scales"


@dataclass(frozen=True)
class IMTLL:
    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {SCALES: torch.zeros(tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        there = ~losses.isnan()
        weights = there * kept[SCALES].exp() / there.sum()
        return weights, {SCALES: torch.where(there, weights * losses - 1 / there.sum(), 0.0)}
