"""Aligned-MTL: the mean of slopes that were made equally long and orthogonal, changing them as little as can be.

    w = √λ G^(−½) 1/H,  λ the least eigenvalue of the Gram matrix G

The aligned slopes are the rows of √λ G^(−½) J, whose Gram matrix is λ I: their condition number is 1. Eigenvalues that
are only rounding count as zero, and λ and G^(−½) are those of the rest. Both come from Newton's iteration on matrices:
torch.linalg.eigh would make the program wait for a GPU.

Senushkin, Patakin, Kuznetsov, Konushin: Independent Component Alignment for Multi-Task Learning. CVPR 2023,
arXiv 2305.19000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.balance.solve.gram import noise, precise
from metarun.balance.solve.spectrum import above, inverse_root, largest
from metarun.types import Params


@dataclass(frozen=True)
class Aligned:
    needs: ClassVar[Literal["gram"]] = "gram"

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        gram, there, least = precise(slopes), ~losses.isnan(), noise(slopes)
        gram = gram / gram.diagonal().sum().clamp(min=torch.finfo(slopes.dtype).tiny)  # no eigenvalue is above 1
        known = above(gram, least)
        filled = known @ gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - known
        filled = (filled + filled.mT) / 2
        root = inverse_root(filled, least)
        mean = (there / there.sum()).to(gram.dtype)
        w = root @ (known @ mean) / largest(root).clamp(min=1)
        return (w * there).to(slopes.dtype), {}
