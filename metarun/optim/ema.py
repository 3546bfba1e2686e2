"""EMA: another optimiser's steps, and in place of where they lead, the mean of where they have been.

    θₜ₊₁ = the base optimiser's step from θₜ
    θ̄ₜ = Σᵢ δᵗ⁻ⁱ θᵢ / Σᵢ δᵗ⁻ⁱ,  i = 1 ... t

δ is `decay`: about the last 1 / (1 − δ) steps count. Between steps the parameters are θ̄, so validation, checkpoints and
the test see it; the θ that goes on is kept here. Where steps are noisy θ̄ is less so, without smaller steps.

Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging. SIAM Journal on Control and Optimization 30,
1992. Tarvainen, Valpola: Mean Teachers Are Better Role Models. NeurIPS 2017, arXiv 1703.01780 (the decaying mean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metarun.types import Rate, Share

MOVING, STEPS = "moving", "steps"  # beside the entries of the base's state


class EMA:
    """An outer optimiser around another one, `base`, whose options and state are its own."""

    def __init__(
        self, params: Iterable[Any], lr: Rate, decay: Share, base: Callable[..., torch.optim.Optimizer]
    ) -> None:
        self.decay = decay
        self.base = base(params, lr=lr)
        self.params: list[Tensor] = [p for group in self.base.param_groups for p in group["params"]]
        self.moving = [p.detach().clone() for p in self.params]
        self.steps = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Calls `closure` at θ, and returns the loss there."""
        mean = [p.clone() for p in self.params]
        for p, moving in zip(self.params, self.moving, strict=True):
            p.copy_(moving)
        loss = closure()
        self.base.step()
        self.steps += 1
        newest = (1 - self.decay) / (1 - self.decay**self.steps)
        for p, moving, before in zip(self.params, self.moving, mean, strict=True):
            moving.copy_(p)
            p.copy_(before.lerp(p, newest))
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {**self.base.state_dict(), MOVING: self.moving, STEPS: self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict({name: value for name, value in state.items() if name not in (MOVING, STEPS)})
        for moving, saved in zip(self.moving, state[MOVING], strict=True):
            moving.copy_(saved)
        self.steps = state[STEPS]
