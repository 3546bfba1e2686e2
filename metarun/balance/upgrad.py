"""UPGrad: the mean of slopes of which each was moved, as little as can be, to where it opposes no other.

    p_h = argmin ‖p − g_h‖  over p with ⟨p, g_k⟩ ≥ 0 for all k;   the step is the mean of the p_h

So to first order no objective gets worse. p_h = g_h + Σ_k x_k g_k with x ≥ 0 that makes ‖p_h‖ the least: H quadratic
programs with one matrix, solved at once. Where no two slopes conflict the step is the mean.

Quinton, Rey: Jacobian Descent for Multi-Objective Optimization. 2024, arXiv 2406.16232.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.balance.solve.gram import cosines
from metarun.balance.solve.interior import minimum
from metarun.types import Params

FIRST = 0.3  # of each x, of unit slopes
STEPS = 14  # which such an even problem needs at most


@dataclass(frozen=True)
class UPGrad:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        matrix, norms = cosines(slopes)
        there = ~losses.isnan()
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        first = torch.full_like(matrix, FIRST)  # row h: of the problem of h
        x = minimum(lambda x: (eye + x) @ matrix, lambda x: matrix, first, steps=STEPS)
        mean = there / there.sum()
        return ((mean * norms) @ (eye + x) / norms * there).to(slopes.dtype), {}
