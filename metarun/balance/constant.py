"""Constant weights, chosen by hand.

w_h = v_h / Σ v,  v being `weights`, one for each head in their order; null gives all the same

Kendall et al. (see `uncertainty`) show how much there is to win by the right ones, and what a search for them costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import MEMORY, Params, Rate, UserError

WEIGHTS = f"{MEMORY}constant.weights"


@dataclass(frozen=True)
class Constant:
    weights: Sequence[Rate] | None

    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        weights = [1.0] * tasks if self.weights is None else list(self.weights)
        typed = f"balance.weights={weights}"
        if len(weights) != tasks:
            raise UserError(f"{typed}: {len(weights)} numbers for {tasks} heads. Give one for each, in their order.")
        if min(weights) < 0 or not sum(weights):
            raise UserError(f"{typed} do not sum to more than 0, or one is below it. Give 0 or more for each head.")
        return {WEIGHTS: torch.tensor(weights, dtype=torch.get_default_dtype())}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        weights = kept[WEIGHTS] * ~losses.isnan()
        return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny), {}
