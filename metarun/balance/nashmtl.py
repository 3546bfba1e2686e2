"""Nash-MTL: the step on which the objectives agree when they bargain for it.

    G a = 1 / a,  a > 0,  w = a / Σ a

G is the slopes' Gram matrix. Of all steps of one length it is that of the largest Σ_h log⟨g_h, step⟩: another would
cost some objectives more, as a share of what they gain, than it brings the others. How long a slope is does not matter.
a is the minimum of ½ aᵀGa − Σ log a_h, found by Newton's steps in each step of training; the paper's code solves up to
20 convex programs, and can keep weights for some steps. The paper's a is not divided by its sum. Where some weighted
mean of the slopes vanishes there is no such step, and this one nearly vanishes.

Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya: Multi-Task Learning as a Bargaining Game. ICML 2022,
arXiv 2202.01017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.balance.solve.gram import cosines
from metarun.balance.solve.interior import minimum
from metarun.types import Params

STEPS = 12  # of Newton; about 8 arrive


@dataclass(frozen=True)
class NashMTL:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        matrix, norms = cosines(slopes)
        # On the solver's path ∇f = z and a z = μ: at μ = 1 that is G a = 1 / a.
        a = minimum(lambda a: matrix @ a, lambda a: matrix, torch.ones_like(norms), end=1.0, steps=STEPS) / norms
        a = a * ~losses.isnan()
        return (a / a.sum()).to(slopes.dtype), {}
