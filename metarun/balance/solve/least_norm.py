"""The shortest step that is a weighted mean of slopes."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.balance.solve.gram import noise, precise
from metarun.balance.solve.interior import minimum

FAR = 2.0  # the slope of ½ wᵀGw is at most 1


def least_norm(gram: Tensor, there: Tensor) -> Tensor:
    """The w ≥ 0 with Σ w = 1 over what is there that makes wᵀGw the least."""
    exact = precise(gram)
    exact = exact / exact.diagonal().amax().clamp(min=torch.finfo(gram.dtype).tiny)
    start = 1 / exact.diagonal().clamp(min=noise(gram))  # the answer, where no two slopes have an angle but a right one
    start = torch.where(there, start, 1.0)
    absent = FAR * ~there
    found = minimum(lambda w: exact @ w + absent, lambda w: exact, start / start.sum(), simplex=True)
    return (found * there).to(gram.dtype)
