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
        gram, there, order = slopes, ~losses.isnan(), kept[LOTS].argsort(1)  # column by column, each row's next one
        tiny, norms = torch.finfo(gram.dtype).tiny, gram.diagonal().clamp(min=0).sqrt()
        rows = torch.arange(len(gram), device=gram.device)
        some = there & (norms > tiny)
        pairs = (order != rows[:, None]) & some[:, None] & some[order]
        targets = kept[TARGETS].gather(1, order).to(gram.dtype)
        sines = (1 - targets.square()).clamp(min=CLOSE**2).sqrt()
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row h: c_h
        cosines = []
        columns = (t.unbind(1) for t in (order, pairs, targets, sines, norms[order]))
        for others, pair, target, sine, length in zip(*columns, strict=True):
            along = coefficients @ gram
            norm = (along * coefficients).sum(1).clamp(min=0).sqrt()
            products = along.gather(1, others[:, None])[:, 0]
            cosine = (products / (norm * length).clamp(min=tiny)).clamp(-1, 1)
            shift = norm * (target * (1 - cosine.square()).sqrt() - cosine * sine) / (length * sine).clamp(min=tiny)
            shift = torch.where(pair & (cosine < target), shift, 0.0)
            coefficients = coefficients.scatter_add(1, others[:, None], shift[:, None])
            cosines.append(cosine)
        moved = torch.where(pairs, self.beta * (torch.stack(cosines, 1) - targets), 0.0).to(kept[TARGETS].dtype)
        weights = (coefficients * there[:, None]).sum(0) / there.sum()
        return weights, {TARGETS: kept[TARGETS].scatter_add(1, order, moved)}
