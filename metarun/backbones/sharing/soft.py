"""Soft parameter sharing: a trunk for each head, and all are held near their mean."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from metarun.types import Params, Rate


class Soft(nn.Module):
    """f_h(x) by a trunk θ_h of each head;  penalty: `tie` Σ_h ‖θ_h − θ̄‖², θ̄ the mean of all θ_h.

    All begin as one and the same, for parameters of networks drawn apart do not correspond to each other. (The first
    paper's problem is convex, so that it does not matter there; the second begins with the trunk of another task.)

    Evgeniou, Pontil: Regularized Multi-Task Learning. KDD 2004.
    Duong, Cohn, Bird, Cook: Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural Network
    Parser. ACL 2015.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...], *, tie: Rate) -> None:
        super().__init__()
        first = make_trunk()
        self.own = nn.ModuleList([first, *(deepcopy(first) for _ in range(heads - 1))])
        self.features = int(first.features)  # type: ignore[arg-type]
        self.tie = tie

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([trunk(x) for trunk in self.own], 1)

    def penalty(self, params: Params) -> Tensor:
        """The distance of the trunks from their mean."""
        found = []
        for name, _ in self.own[0].named_parameters():
            each = torch.stack([params[f"own.{head}.{name}"] for head in range(len(self.own))])
            found.append((each - each.mean(0)).square().sum())
        return self.tie * torch.stack(found).sum()
