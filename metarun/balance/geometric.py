"""The geometric mean of the losses: each counts by its logarithm, so that no unit or scale of a loss matters.

    L = (Π_h L_h)^(1/H),   w_h = ∂L/∂L_h = L / (H L_h)

Losses have to be positive. The step is as long as that of the geometric mean, which is small where one loss is.

Chennupati, Sistu, Yogamani, Rawashdeh: MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
Multi-Task Learning. CVPR workshops 2019, arXiv 1904.08492.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import Params

LEAST = 1e-8  # of a loss


@dataclass(frozen=True)
class Geometric:
    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        there, logs = ~losses.isnan(), losses.clamp(min=LEAST).log()
        count = there.sum()
        mean = torch.where(there, logs, 0.0).sum() / count
        return torch.where(there, (mean - logs).exp() / count, 0.0), {}
