"""Customised gate control: each head mixes trunks that it has in common with others and trunks of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from metarun.backbones.sharing.mmoe import MOST, Experts, Gate
from metarun.types import AtLeast


class CGC(nn.Module):
    """f_h(x) = Σ_e g_h(x)_e f_e(x),  g_h(x) = softmax(W_h x)  over `own` trunks of the head and `shared` ones of all.

    The gate reads the input itself. Each expert is drawn by itself.

    Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
    Recommendations. RecSys 2020.
    """

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        heads: int,
        shape: tuple[int, ...],
        *,
        shared: Annotated[int, AtLeast(0, below=MOST + 1)],
        own: Experts,
    ) -> None:
        super().__init__()
        self.shared = nn.ModuleList(make_trunk() for _ in range(shared))
        self.own = nn.ModuleList(
            Mixture([make_trunk() for _ in range(own)], shared, math.prod(shape)) for _ in range(heads)
        )
        self.features = int(self.own[0].experts[0].features)  # type: ignore[union-attr, index]

    def forward(self, x: Tensor) -> Tensor:
        common = [expert(x) for expert in self.shared]
        return torch.stack([mixture(x, x, common) for mixture in self.own], 1)


class Mixture(nn.Module):
    """Experts, and a gate that weighs what they make of x and the outputs of so many others."""

    def __init__(self, experts: Sequence[nn.Module], others: int, reads: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gate = Gate(reads, len(experts) + others)

    def forward(self, x: Tensor, read: Tensor, others: Sequence[Tensor]) -> Tensor:
        return self.gate(read, [*(expert(x) for expert in self.experts), *others])
