"""RLW: weights drawn anew in each step, a test of whether a method does more than random weights do.

    w = softmax(z),   z standard normal numbers

On average it is the mean of the losses, with more noise.

Lin, Ye, Zhang, Tsang: Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning. TMLR 2022,
arXiv 2111.10603.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import LOTS, Params

EDGE = 1e-7  # lots lie this far from 0 and 1, whose normal numbers are infinite


@dataclass(frozen=True)
class RLW:
    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {LOTS: torch.zeros(tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        normal = torch.special.ndtri(kept[LOTS].clamp(EDGE, 1 - EDGE))
        return normal.masked_fill(losses.isnan(), -torch.inf).softmax(0), {}
