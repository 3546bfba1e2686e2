"""STCH, smooth Tchebycheff: the largest loss counts most.

    L = μ log 1/H Σ_h exp(L_h / μ),   w_h = ∂L/∂L_h = softmax(L / μ)_h

μ is `mu`: towards 0, L becomes the largest loss; with a large μ, their mean. The paper has a preference λ_h before each
loss, which makes its μ H times smaller where all are 1/H, and an ideal point, which changes nothing where it is one for
all heads.

Lin, Zhang, Yang, Liu, Wang, Zhang: Smooth Tchebycheff Scalarization for Multi-Objective Optimization. ICML 2024,
arXiv 2402.19078.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import Params, Positive


@dataclass(frozen=True)
class STCH:
    mu: Positive

    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        return (losses / self.mu).masked_fill(losses.isnan(), -torch.inf).softmax(0), {}
