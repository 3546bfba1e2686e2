"""Equal weights: the mean over objectives, the baseline every comparison needs.

w_h = 1 / H
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from metarun.types import Params


@dataclass(frozen=True)
class Equal:
    needs: ClassVar[Literal["losses"]] = "losses"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        there = (~losses.isnan()).to(losses.dtype)
        return there / there.sum(), {}
