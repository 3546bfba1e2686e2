"""SAM: the outer step follows the slope of the worst point nearby, which leads to flat minima.

    ε = ρ g / ‖g‖,  g the slope at θ
    θ ← the base optimiser's step from θ, with the slope at θ + ε

Two slopes per step, of the same tasks. ρ is `rho`; where g is zero, ε is. The norm is over all entries together.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization. ICLR 2021,
arXiv 2010.01412.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metarun.types import Rate


class SAM:
    """An outer optimiser around another one, `base`, whose options and state are its own."""

    def __init__(self, params: Iterable[Any], lr: Rate, rho: Rate, base: Callable[..., torch.optim.Optimizer]) -> None:
        self.rho = rho
        self.base = base(params, lr=lr)
        self.params: list[Tensor] = [p for group in self.base.param_groups for p in group["params"]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Calls `closure` at θ and at θ + ε, and returns the loss at θ."""
        loss = closure()
        slope = {p: p.grad for p in self.params if p.grad is not None}
        norm = torch.stack([torch.linalg.vector_norm(g) for g in slope.values()]).norm()
        scale = torch.where(norm > 0, self.rho / norm, 0.0)
        here = [p.clone() for p in slope]  # θ + ε − ε is not θ to the last bit
        for p, g in slope.items():
            p.add_(g * scale)
        closure()
        for p, before in zip(slope, here, strict=True):
            p.copy_(before)
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)
