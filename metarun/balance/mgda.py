"""MGDA: the shortest step among all weighted means of the slopes, which no objective opposes.

    w = argmin ‖Σ_h w_h g_h‖²  over w ≥ 0, Σ w = 1

Where every objective can still be improved the step improves all of them alike: ⟨g_h, step⟩ = ‖step‖² for each h with
weight, and no less for the others. Slopes that are short get most of the weight. The paper's Frank-Wolfe steps are many
and inexact; here Newton's are few.

Désidéri: Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization. C. R. Math. 350, 2012.
Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018, arXiv 1810.04650.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from metarun.balance.solve.least_norm import least_norm
from metarun.types import Params


@dataclass(frozen=True)
class MGDA:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        return least_norm(slopes, ~losses.isnan()), {}
