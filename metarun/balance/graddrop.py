"""GradDrop: each entry of the step keeps the slopes of one sign only, drawn by how much there is of either.

    p = ½ (1 + Σ_h g_h / Σ_h |g_h|),  u uniform:   the positive g_h are kept where p > u, the negative ones elsewhere
    the step is the mean over h of what is kept

p and u have an entry for each number that is shared. On average over u the step is the mean of all slopes. The paper
drops slopes by the features of a layer, of which each input has its own; here those by the shared entries are dropped.
It sums, and can let a share of what is dropped leak through, which is left out.

Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov: Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
Sign Dropout. NeurIPS 2020, arXiv 2010.06808.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import LOTS, Params


@dataclass(frozen=True)
class GradDrop:
    needs: ClassVar[Literal["slopes"]] = "slopes"

    def init(self, tasks: int, size: int) -> Params:
        return {LOTS: torch.zeros(size)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        there, above = ~losses.isnan(), slopes.clamp(min=0).sum(0)
        total = (2 * above - slopes.sum(0)).clamp(min=torch.finfo(slopes.dtype).tiny)  # Σ |g_h|
        keeps = (slopes > 0) == (above / total > kept[LOTS])
        return keeps / there.sum().to(slopes.dtype), {}
