"""Gram matrices, made ready to be solved with."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(gram: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return gram.to(torch.float32 if gram.device.type == "mps" else torch.float64)


def noise(gram: Tensor) -> float:
    """How large an eigenvalue may be that is only rounding, as a share of the largest."""
    return max(gram.shape[-1] * torch.finfo(gram.dtype).eps, 1e-12)


def cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of unit slopes, precise and with rounding's share added so that it is definite; and the norms.

    A slope of zero becomes a unit slope at a right angle to all others, of norm 1.
    """
    squares = precise(gram).diagonal()
    norms = torch.where(squares > torch.finfo(gram.dtype).tiny, squares, 1.0).sqrt()
    off = precise(gram) / norms[:, None] / norms
    eye = torch.eye(len(gram), dtype=off.dtype, device=off.device)
    return off * (1 - eye) + (1 + noise(gram)) * eye, norms
