"""IMTL-G: the step whose projections on all slopes are equally long.

    ⟨step, g_h⟩ / ‖g_h‖ is the same for all h,  step = Σ w_h g_h,  Σ w = 1

w may be negative. With C, the Gram matrix of the unit slopes g_h / ‖g_h‖, w_h ∝ y_h / ‖g_h‖ where C y = 1. Where no
step is such, since slopes depend on each other, y is the shortest that comes nearest. Where w sums to zero, it is zero.

Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang: Towards Impartial Multi-task Learning. ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.balance.solve.gram import cosines, noise
from metarun.balance.solve.spectrum import above
from metarun.types import Params


@dataclass(frozen=True)
class IMTLG:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        matrix, norms = cosines(slopes)
        there = (~losses.isnan()).to(matrix.dtype)
        matrix = matrix / len(matrix)  # no eigenvalue is above 1
        known = above(matrix, 2 * noise(slopes))
        other = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) - known
        y = torch.linalg.solve_ex(known @ matrix + other, known @ there, check_errors=False)[0]
        w = y * there / norms
        total = w.sum()
        far = total.abs() > noise(slopes) * w.abs().sum()
        return torch.where(far, w / torch.where(far, total, 1.0), 0.0).to(slopes.dtype), {}
