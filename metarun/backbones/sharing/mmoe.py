"""Multi-gate mixture of experts: all heads have all trunks in common, and each its own gate to weigh them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from metarun.types import AtLeast

MOST = 1000  # experts: more would take longer to make than anybody waits
Experts = Annotated[int, AtLeast(1, below=MOST + 1)]


class MMoE(nn.Module):
    """f_h(x) = Σ_e g_h(x)_e f_e(x),  g_h(x) = softmax(W_h x)  over `experts` trunks f_e.

    The gate reads the input itself. Each expert is drawn by itself.

    Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts. KDD 2018.
    """

    def __init__(
        self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...], *, experts: Experts
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(make_trunk() for _ in range(experts))
        self.own = nn.ModuleList(Gate(math.prod(shape), experts) for _ in range(heads))
        self.features = int(self.experts[0].features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        outputs = [expert(x) for expert in self.experts]
        return torch.stack([gate(x, outputs) for gate in self.own], 1)


class Gate(nn.Module):
    """Outputs of several experts [B, ...] -> their mean, weighed by what the gate reads: so many numbers a row."""

    def __init__(self, reads: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(reads, experts, bias=False)

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        weights = self.linear(x.flatten(1)).softmax(-1)
        return torch.einsum("be,be...->b...", weights, torch.stack([*outputs], 1))
