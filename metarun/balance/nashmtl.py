"""Nash-MTL: the step on which the objectives agree when they bargain for it.

    G a = 1 / a,  a > 0,  w = a / Σ a

G is the slopes' Gram matrix. It is where Σ_h log⟨g_h, step⟩ is largest among steps of one length, so that no objective
gains by more, relative to what it has, than another loses; how long a slope is does not matter. a is the minimum of
½ aᵀGa − Σ log a_h, found by Newton's steps each time; the paper's code takes up to 20 convex programs, and offers to keep
weights for some steps. The paper's step has length √H or what `max_norm` leaves of it; here the weights sum to 1.

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


@dataclass(frozen=True)
class NashMTL:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        matrix, norms = cosines(slopes)
        # On the solver's path ∇f = z and a z = μ: at μ = 1 that is G a = 1 / a.
        a = minimum(lambda a: matrix @ a, lambda a: matrix, torch.ones_like(norms), end=1.0) / norms
        a = a * ~losses.isnan()
        return (a / a.sum()).to(slopes.dtype), {}
