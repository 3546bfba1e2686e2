"""PCGrad: where two slopes oppose each other, each loses its part along the other.

    for each h, over the other k in random order:  g_h ← g_h − min(0, ⟨g_h, g_k⟩) / ‖g_k‖² · g_k
    the step is the mean of the projected g_h

g_k is the slope as it was before any projection. All of it is done on the Gram matrix: a projected slope is a row of
coefficients c_h over the slopes, so that ⟨g_h, g_k⟩ = (c_h G)_k. The paper sums the projected slopes; the mean keeps
the step of equal weights where nothing conflicts.

Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning. NeurIPS 2020, arXiv 2001.06782.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import LOTS, Params


@dataclass(frozen=True)
class PCGrad:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {LOTS: torch.zeros(tasks, tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        gram, rows = slopes, torch.arange(len(slopes), device=slopes.device)
        squares = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny)
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row h: c_h
        for others in kept[LOTS].argsort(1).unbind(1):  # each row's next one to be projected on
            along = (coefficients * gram[others]).sum(1)  # ⟨g_h, g_k⟩
            shift = along.clamp(max=0) / squares[others] * (others != rows)
            coefficients = coefficients.scatter_add(1, others[:, None], -shift[:, None])
        there = ~losses.isnan()
        return (coefficients * there[:, None]).sum(0) / there.sum(), {}
