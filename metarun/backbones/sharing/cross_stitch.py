"""Cross-stitch network: a trunk for each head, and after every stage each goes on with a learned mixture of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metarun.maths.staged import parts
from metarun.types import Rate


class CrossStitch(nn.Module):
    """x_h ← Σ_k α_hk f_k(x_k)  for each stage, f_k that of the trunk of head k.

    What follows the last stage is stitched too where it learns something, else the last stage with it. One α is for all
    channels of a stage. It begins as `alpha` on the diagonal, and the rest shared evenly by the others. Each trunk is
    drawn by itself; the paper begins with trunks that were trained for their heads, and moves α faster than them.

    Misra, Shrivastava, Gupta, Hebert: Cross-stitch Networks for Multi-task Learning. CVPR 2016, arXiv 1604.03539.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...], *, alpha: Rate) -> None:
        super().__init__()
        trunks = [make_trunk() for _ in range(heads)]
        self.features = int(trunks[0].features)  # type: ignore[arg-type]
        columns = [parts(trunk) for trunk in trunks]
        self.trunks = nn.ModuleList(map(nn.ModuleList, columns))
        others = (1 - alpha) / max(heads - 1, 1)
        start = torch.full((heads, heads), others).fill_diagonal_(1 - others * (heads - 1))
        self.units = nn.ParameterList(start.clone() for _ in columns[0][1:])
        self.own = nn.ParameterList(row.clone() for row in start)  # the last unit, of which each head reads a row

    def forward(self, x: Tensor) -> Tensor:
        each, last = (x,) * len(self.trunks), torch.stack([*self.own])
        for alpha, *stage in zip([*self.units, last], *self.trunks, strict=True):
            made = torch.stack([part(own) for part, own in zip(stage, each, strict=True)], 1)
            each = torch.einsum("hk,bk...->bh...", alpha, made).unbind(1)
        return torch.stack(each, 1)
