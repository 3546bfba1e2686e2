"""CAGrad: near the mean slope, the step that serves the objective which it serves worst as well as it can.

    max over d of min_h ⟨g_h, d⟩  with ‖d − ḡ‖ ≤ c ‖ḡ‖,  ḡ = mean of the g_h
    d = ḡ + c ‖ḡ‖ s / ‖s‖,  s = Σ w_h g_h,  w = argmin ⟨ḡ, s⟩ + c ‖ḡ‖ ‖s‖  over w ≥ 0, Σ w = 1

c is `c`: 0 is the mean, and as it grows the step becomes MGDA's. Here d is divided by 1 + c, so that objectives that
agree give the step of equal weights.

Liu, Liu, Jin, Stone, Liu: Conflict-Averse Gradient Descent for Multi-task Learning. NeurIPS 2021, arXiv 2110.14048.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.balance.solve.gram import noise, precise
from metarun.balance.solve.interior import minimum
from metarun.types import Params, Rate

FAR = 4.0  # beyond any slope of what is made least


@dataclass(frozen=True)
class CAGrad:
    c: Rate

    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        there = ~losses.isnan()
        mean = there / there.sum()
        gram = precise(slopes)
        gram = gram / gram.diagonal().amax().clamp(min=torch.finfo(slopes.dtype).tiny)
        found = self._worst(gram, mean.to(gram.dtype), FAR * ~there, noise(slopes))
        return (found * there / (1 + self.c)).to(slopes.dtype), {}

    def _worst(self, gram: Tensor, mean: Tensor, absent: Tensor, least: float) -> Tensor:
        """The weights of d."""
        along = gram @ mean  # ⟨ḡ, g_h⟩
        radius = self.c * (mean @ along).clamp(min=0).sqrt()

        def norm(w: Tensor) -> Tensor:
            return (w @ (gram @ w)).clamp(min=least**2).sqrt()

        def slope(w: Tensor) -> Tensor:
            return along + radius * (gram @ w) / norm(w) + absent

        def curvature(w: Tensor) -> Tensor:
            unit = gram @ w / norm(w)
            return radius / norm(w) * (gram - unit[:, None] * unit)

        w = minimum(slope, curvature, torch.full_like(mean, 1 / len(mean)), simplex=True)
        return mean + radius / norm(w) * w
