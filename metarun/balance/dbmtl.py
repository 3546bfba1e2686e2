"""DB-MTL: slopes of the losses' logarithms, averaged over steps, and all made as long as the longest.

    m_h ← β_t m_h + (1 − β_t) ∇log L_h,  β_t = `beta` / t^`decay`,   d = max_k ‖m_k‖ · 1/H Σ_h m_h / ‖m_h‖

t counts a head's steps; its first takes no average. The step is d times the losses' geometric mean, so that heads that
agree give that of equal weights: without averages and lengths it is the step of `geometric`. The paper's is H d. The
averages that are kept are H times as large as what is shared. Weights of this step's slopes are, entry by entry, the
shortest under which they sum to the step; an entry in which all slopes are exactly zero does not move.

Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok: Dual-Balancing for Multi-Task Learning. 2023, arXiv 2308.12029.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import MEMORY, Params, Rate, Share

MEANS, SEEN = f"{MEMORY}dbmtl.means", f"{MEMORY}dbmtl.seen"
LEAST = 1e-8  # of a loss


@dataclass(frozen=True)
class DBMTL:
    beta: Share
    decay: Rate

    needs: ClassVar[Literal["slopes"]] = "slopes"

    def init(self, tasks: int, size: int) -> Params:
        return {MEANS: torch.zeros(tasks, size), SEEN: torch.zeros(tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        there, above = ~losses.isnan(), losses.clamp(min=LEAST)
        seen, before = kept[SEEN] + there, kept[MEANS]
        beta = torch.where(kept[SEEN] > 0, self.beta / seen.clamp(min=1) ** self.decay, 0.0)[:, None]
        means = torch.where(there[:, None], beta * before + (1 - beta) * slopes / above[:, None], before)
        step = self._mixed(means, there) * torch.where(there, above.log(), 0.0).sum().div(there.sum()).exp()
        tiny = torch.finfo(slopes.dtype).tiny
        largest = slopes.abs().amax(0)
        units = slopes / largest.clamp(min=tiny)  # whose squares do not vanish
        weights = units * (step / largest.clamp(min=tiny) / units.square().sum(0).clamp(min=1))
        return torch.where(largest > tiny, weights, 0.0), {MEANS: means, SEEN: seen}

    def _mixed(self, means: Tensor, there: Tensor) -> Tensor:
        """d: the mean of those that are there, all as long as the longest."""
        norms = torch.linalg.vector_norm(means, dim=1) * there
        alike = torch.where(norms > 0, norms.max() / norms, 0.0)
        return alike @ means / there.sum()
