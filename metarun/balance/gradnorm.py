"""GradNorm: weights under which all slopes are equally long, and longer where a loss has fallen less.

    r_h = (L_h / L_h at first) / their mean,   n_h = H w_h ‖g_h‖,   w = softmax(ω)
    the outer optimiser descends  Σ_h |n_h − n̄ r_h^α|  by ω, with n̄ r_h^α as a constant

α is `alpha`. ‖g_h‖ is the norm of the slope by all shared entries; the paper takes those of the last shared layer,
which is cheaper. It moves the weights themselves, and divides them by their sum; by ω they sum to 1 and stay positive.
An absent head's ω stays, and the loss that a head had at first is the first that was seen.

Chen, Badrinarayanan, Lee, Rabinovich: GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks. ICML 2018, arXiv 1711.02257.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import MEMORY, Params, Rate

LOGITS, FIRST = "gradnorm.logits", f"{MEMORY}gradnorm.first"
LEAST = 1e-8  # of a loss


@dataclass(frozen=True)
class GradNorm:
    alpha: Rate

    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {LOGITS: torch.zeros(tasks), FIRST: torch.full((tasks,), math.nan)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        there = ~losses.isnan()
        count, first = there.sum(), torch.where(kept[FIRST].isnan(), losses, kept[FIRST])
        weights = kept[LOGITS].masked_fill(~there, -torch.inf).softmax(0)
        norms = slopes.diagonal().clamp(min=0).sqrt()
        sizes = count * weights * norms
        left = torch.where(there, losses.clamp(min=LEAST) / first.clamp(min=LEAST), 0.0)
        rates = left / (left.sum() / count)
        push = (sizes - sizes.sum() / count * rates**self.alpha).sign() * sizes  # ∂/∂log w
        return weights, {LOGITS: push * there - weights * (push * there).sum(), FIRST: first}
