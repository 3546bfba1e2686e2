"""An output layer for a new task without a step of descent through the network, from finished features.

Each function takes features [B, D] of length 1 and their classes [B], and returns weight [N, D] and bias [N]. Rows with
class -100 count for nothing; the bias of a class without a row is such that nothing is of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.prototypes import membership, present, prototypes

Layer = tuple[Tensor, Tensor]

ITERATIONS = 300  # of logistic regression: 100 rows of 20 classes need 150 for six digits
CURVATURE = 0.5  # about the least that its loss has where the rows tell classes apart; momentum is chosen by it


def nearest(x: Tensor, y: Tensor, ways: int) -> Layer:
    """The nearest of the class means c: −‖x − c‖² = 2 c·x − ‖c‖² − 1."""
    means, rows = prototypes(x, y, ways)
    return 2 * means, present(-means.square().sum(1) - 1, rows)


def imprinted(x: Tensor, y: Tensor, ways: int) -> Layer:
    """The class means, scaled to length 1: x Wᵀ are cosines."""
    means, rows = prototypes(x, y, ways)
    return F.normalize(means, dim=-1), present(torch.zeros_like(rows), rows)


def logistic(x: Tensor, y: Tensor, ways: int) -> Layer:
    """The least of Σ over rows of cross-entropy + ½‖W‖²; the bias is free.

    By Nesterov's accelerated descent, for a known number of steps: Newton's would solve a system of N (D + 1) unknowns.
    The loss curves by at most ½ ‖[x, 1]‖² per row, and by 1 for ½‖W‖², whence the size of the steps.
    """
    member = membership(y, ways, x.dtype)  # [B, N]
    wide = F.pad(x, (0, 1), value=1.0) * member.sum(1, keepdim=True)  # [B, D+1]; a row of zeros counts for nothing
    rows, ridge = member.sum(0), F.pad(torch.ones_like(x[0]), (0, 1))
    known, most = member.sum(1, keepdim=True), rows.sum() + 1
    momentum = (1 - (CURVATURE / most).sqrt()) / (1 + (CURVATURE / most).sqrt())
    layer = ahead = x.new_zeros(ways, len(ridge))
    for _ in range(ITERATIONS):
        error = present(wide @ ahead.T, rows).softmax(-1) * known - member
        before, layer = layer, ahead - (error.T @ wide + ridge * ahead) / most
        ahead = layer + momentum * (layer - before)
    return layer[:, :-1], present(layer[:, -1], rows)
