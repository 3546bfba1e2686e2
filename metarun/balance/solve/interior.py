"""Minima of smooth convex functions over x ≥ 0 by an interior-point method: batched, and of a fixed number of steps.

    min f(x)  over x ≥ 0, or over x ≥ 0 with Σ x = 1:    ∇f(x) = z + ν,   x z = μ  as μ falls to `end`

Newton's steps (∇²f + z/x) dx = μ/x − ∇f + ν follow this path; dz keeps x z near μ, and ν is 0 or what keeps the sum.
With t = √(x/z) the matrix is t⁻¹ (I + t ∇²f t) t⁻¹: what is factored has no eigenvalue below 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 20  # about 12 arrive, or 20 where slopes are of very different lengths; those after stay there
END = {torch.float64: 1e-13, torch.float32: 1e-6}  # μ at the end of the path
LEAST = 0.1  # of the first z


def minimum(
    slope: Callable[[Tensor], Tensor],
    curvature: Callable[[Tensor], Tensor],
    x: Tensor,
    simplex: bool = False,
    end: float | None = None,
    steps: int = STEPS,
) -> Tensor:
    """The end of the path that begins near x [..., K], all positive, for a slope [..., K] and a curvature [..., K, K]
    whose sizes are about 1 there."""
    end = END[x.dtype] if end is None else end
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    at = slope(x)
    z = at - at.amin(-1, keepdim=True) + 1 if simplex else at.clamp(min=LEAST)
    length = torch.full_like(x[..., :1], 0.7)
    for _ in range(steps):
        mu = ((1 - length).clamp(0.1, 0.9).square() * (x * z).mean(-1, keepdim=True)).clamp(min=end)
        t = (x / z).sqrt()
        scaled = t[..., :, None] * (curvature(x) + float(simplex)) * t[..., None, :]
        factor = torch.linalg.cholesky_ex(eye + scaled, check_errors=False)[0]
        dx = t * _solved(factor, t * (mu / x - slope(x)))
        if simplex:
            across = t * _solved(factor, t)
            dx = dx + (1 - (x + dx).sum(-1, keepdim=True)) / across.sum(-1, keepdim=True) * across
        dz = mu / x - z - z / x * dx
        length = 0.99 / torch.maximum(-dx / x, -dz / z).amax(-1, keepdim=True).clamp(min=0.99)  # x and z stay positive
        x, z = x + length * dx, z + length * dz
    return x


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[..., None], factor)[..., 0]
