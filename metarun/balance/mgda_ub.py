"""MGDA-UB: the weights of MGDA, from the slopes by the features instead of those by the shared entries.

    w = argmin ‖Σ_h w_h ∂L_h/∂Z‖²  over w ≥ 0, Σ w = 1,  Z being the features that all heads read

The trunk is followed back once, whatever the number of heads. What is made small is, up to the size of ∂Z/∂θ, a bound
of MGDA's step; where that has full rank, it vanishes only where MGDA's does.

Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018, arXiv 1810.04650.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from metarun.balance.solve.least_norm import least_norm
from metarun.types import Params


@dataclass(frozen=True)
class MGDAUB:
    needs: ClassVar[Literal["features"]] = "features"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        return least_norm(slopes, ~losses.isnan()), {}
