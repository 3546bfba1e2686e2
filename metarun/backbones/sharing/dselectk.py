"""DSelect-k: a mixture of trunks whose gates, differentiable everywhere, come to choose k of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from metarun.backbones.sharing.mmoe import MOST
from metarun.types import AtLeast, Count, Params, Positive, Rate, UserError


class DSelectK(nn.Module):
    """f_h(x) = Σ_e q_he f_e(x)  over `experts` trunks f_e,  q_h = Σ_l softmax(w_h)_l r(z_hl)  of `chosen` selectors
    r(z)_e = Π_j S(z_j) where bit j of e is 1, else 1 − S(z_j);  S(t) = 0 | −2t³/γ³ + 3t/2γ + 1/2 | 1 with bends at ±γ/2
    penalty: `entropy` Σ_h Σ_l −r(z_hl)·log r(z_hl)

    γ is `gamma`. Once all bits have come to 0 or 1, a head uses at most `chosen` experts, and which does not change any
    more. The gates are the paper's static ones, which do not look at the input. Each expert is drawn by itself.

    Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi: DSelect-k: Differentiable Selection in the
    Mixture of Experts with Applications to Multi-Task Learning. NeurIPS 2021, arXiv 2106.03760.
    """

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        heads: int,
        shape: tuple[int, ...],
        *,
        experts: Annotated[int, AtLeast(2, below=MOST + 1)],
        chosen: Count,
        gamma: Positive,
        entropy: Rate,
    ) -> None:
        super().__init__()
        bits = experts.bit_length() - 1
        if experts != 2**bits:
            raise UserError(f"sharing.experts={experts} is no power of 2. Give {2**bits} or {2 ** (bits + 1)}.")
        if chosen > experts:
            raise UserError(f"sharing.chosen={chosen} of sharing.experts={experts} cannot be. Lower it.")
        self.gamma, self.entropy = gamma, entropy
        self.experts = nn.ModuleList(make_trunk() for _ in range(experts))
        self.own = nn.ModuleList(Choice(chosen, bits, gamma) for _ in range(heads))
        self.features = int(self.experts[0].features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)  # [B, E, D]
        weights = torch.stack([choice() for choice in self.own])  # [H, E]
        return weights @ outputs

    def penalty(self, params: Params) -> Tensor:
        """The entropy of all selectors."""
        z = torch.stack([params[f"own.{head}.z"] for head in range(len(self.own))])
        r = selected(z, self.gamma)
        tiny = torch.finfo(r.dtype).tiny  # of 0 there is no logarithm, and no slope
        return -self.entropy * (r * r.clamp(min=tiny).log()).sum()


class Choice(nn.Module):
    """The weight of each expert [E], of which there are 2^bits."""

    def __init__(self, chosen: int, bits: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.z = nn.Parameter(torch.empty(chosen, bits).uniform_(-gamma / 100, gamma / 100))
        self.w = nn.Parameter(torch.zeros(chosen))

    def forward(self) -> Tensor:
        return self.w.softmax(-1) @ selected(self.z, self.gamma)


def selected(z: Tensor, gamma: float) -> Tensor:
    """Bits [..., M] -> how far each of the 2^M experts is selected: [..., 2^M], which sum to 1."""
    found = torch.ones_like(z[..., :1])
    for bit in smooth_step(z, gamma).split(1, -1):
        found = torch.cat([found * (1 - bit), found * bit], -1)
    return found


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """From 0 to 1 between −γ/2 and γ/2, flat outside."""
    t = (t / gamma).clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5
