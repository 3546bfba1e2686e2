"""Progressive layered extraction: customised gate control again and again, a level for each stage of the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metarun.backbones.sharing.cgc import Mixture
from metarun.backbones.sharing.mmoe import Experts, Gate
from metarun.maths.staged import parts, shapes


class PLE(nn.Module):
    """x_h ← Σ_e g_h(x_h)_e f_e  over `own` experts f_e(x_h) of the head and `shared` ones f_e(x_all) of all heads
    x_all ← Σ_e g_all(x_all)_e f_e  over the experts of all heads and the shared ones, but for the last level

    An expert of a level is that stage of the backbone; what follows the last stage is a level by itself where it learns
    something, else it belongs to the last. All x begin as the input. A gate reads the same x as its own experts: on the
    first level all of the input, later the mean of feature maps over positions. Each expert is drawn by itself.

    Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
    Recommendations. RecSys 2020.
    """

    def __init__(
        self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...], *, shared: Experts, own: Experts
    ) -> None:
        super().__init__()
        trunk = make_trunk()
        self.features = int(trunk.features)  # type: ignore[arg-type]
        reads = [math.prod(shape), *(made[0] for made in shapes(parts(trunk), shape))]
        columns = [[parts(make_trunk()) for _ in range(count)] for count in (*[own] * heads, shared)]
        *levels, last = [[[part[level] for part in column] for column in columns] for level in range(len(reads) - 1)]
        self.levels = nn.ModuleList(Level(groups, size) for groups, size in zip(levels, reads, strict=False))
        *each, common = last
        self.shared = nn.ModuleList(common)
        self.own = nn.ModuleList(Mixture(experts, shared, reads[-2]) for experts in each)

    def forward(self, x: Tensor) -> Tensor:
        seen, read = [x] * (len(self.own) + 1), [x.flatten(1)] * (len(self.own) + 1)
        for level in self.levels:
            seen = level(seen, read)
            read = [_positions_averaged(maps) for maps in seen]
        *each, of_all = seen
        common = [expert(of_all) for expert in self.shared]
        rows = zip(self.own, each, read, strict=False)
        return torch.stack([mixture(own, what, common) for mixture, own, what in rows], 1)


class Level(nn.Module):
    """What each head, and last all of them together, goes on with: experts of each, and a gate of each."""

    def __init__(self, groups: Sequence[Sequence[nn.Module]], reads: int) -> None:
        super().__init__()
        self.all = len(groups) - 1
        self.experts = nn.ModuleList(expert for group in groups for expert in group)
        self.owners = [number for number, group in enumerate(groups) for _ in group]
        self.gates = nn.ModuleList(Gate(reads, len(self._read_by(number))) for number in range(len(groups)))

    def forward(self, seen: Sequence[Tensor], read: Sequence[Tensor]) -> list[Tensor]:
        outputs = [expert(seen[owner]) for expert, owner in zip(self.experts, self.owners, strict=True)]
        rows = enumerate(zip(self.gates, read, strict=True))
        return [gate(own, [outputs[i] for i in self._read_by(number)]) for number, (gate, own) in rows]

    def _read_by(self, number: int) -> list[int]:
        """The experts of one, and those of all; the last one reads every expert."""
        return [i for i, owner in enumerate(self.owners) if number == self.all or owner in (number, self.all)]


def _positions_averaged(maps: Tensor) -> Tensor:
    """[B, C, ...] -> [B, C]."""
    return maps.flatten(2).mean(-1) if maps.ndim > 2 else maps
