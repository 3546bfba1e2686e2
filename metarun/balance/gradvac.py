"""GradVac: two slopes that are less alike than they usually are get brought to their usual angle.

    for each h, over the other k in random order, with φ = cos(g_h, g_k) and φ̂ the target of this pair:
        where φ < φ̂:  g_h ← g_h + ‖g_h‖ (φ̂ √(1−φ²) − φ √(1−φ̂²)) / (‖g_k‖ √(1−φ̂²)) · g_k,  so that cos(g_h, g_k) = φ̂
        φ̂ ← (1 − β) φ̂ + β φ
    the step is the mean of the g_h

β is `beta`; φ̂ begins at 0, where this is PCGrad. g_k is the slope as it was before any change. All of it is done on
the Gram matrix, as in `pcgrad`. The paper sums the changed slopes; the mean keeps the step of equal weights where
nothing is changed. It can keep a target for each layer; here there is one for all shared entries.

Wang, Tsvetkov, Firat, Cao: Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
Multilingual Models. ICLR 2021, arXiv 2010.05874.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from metarun.types import LOTS, MEMORY, AtLeast, Params

TARGETS = f"{MEMORY}gradvac.targets"
CLOSE = 1e-4  # of a target's sine: a target of 1 cannot be reached


@dataclass(frozen=True)
class GradVac:
    beta: Annotated[float, AtLeast(0, below=1)]

    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {LOTS: torch.zeros(tasks, tasks), TARGETS: torch.zeros(tasks, tasks)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        gram, there = slopes, ~losses.isnan()
        rows, tiny = torch.arange(len(gram), device=gram.device), torch.finfo(gram.dtype).tiny
        norms = gram.diagonal().clamp(min=0).sqrt()
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row h: c_h
        targets = kept[TARGETS]
        for others in kept[LOTS].argsort(1).unbind(1):  # each row's next one to be compared with
            along = coefficients @ gram
            norm = (along * coefficients).sum(1).clamp(min=0).sqrt()
            size = norm * norms[others]
            pair = (others != rows) & there & there[others] & (size > tiny)
            cosine = (_at(along, others) / size.clamp(min=tiny)).clamp(-1, 1)
            target = _at(targets, others).to(gram.dtype)
            sine = (1 - target.square()).clamp(min=CLOSE**2).sqrt()
            shift = (
                norm * (target * (1 - cosine.square()).sqrt() - cosine * sine) / (norms[others] * sine).clamp(min=tiny)
            )
            shift = torch.where(pair & (cosine < target), shift, 0.0)
            coefficients = coefficients.scatter_add(1, others[:, None], shift[:, None])
            moved = torch.where(pair, self.beta * (cosine - target), 0.0).to(targets.dtype)
            targets = targets.scatter_add(1, others[:, None], moved[:, None])
        return (coefficients * there[:, None]).sum(0) / there.sum(), {TARGETS: targets}


def _at(matrix: Tensor, columns: Tensor) -> Tensor:
    """One entry of each row."""
    return matrix.gather(1, columns[:, None])[:, 0]
