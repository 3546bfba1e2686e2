"""A linear support vector machine for many classes: its dual solved exactly, and differentiated where it is solved.

    max over α [B, N] of  −½ Σ_k ‖Σ_b α_bk x_b‖² + Σ_b α_{b,y_b}
    with α_bk ≤ C·1[k = y_b] and Σ_k α_bk = 0;  w_k = Σ_b α_bk x_b

With slacks s = C·1[k = y_b] − α, multipliers z of s ≥ 0 and ν of the sums, the solution is the end of a path on which

    Gα + z + ν = 1[k = y_b],   Σ_k α_bk = 0,   s z = μ,   with G = X Xᵀ,

as μ falls to 0. Newton steps with Mehrotra's corrector follow it. G couples no two classes, and the sums couple nothing
else: a step is N systems of B unknowns, and one that joins them. α, s and z are [N, B] below.

Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines. JMLR 2001.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 20  # about 12 arrive, the others stay there
GAP = {torch.float64: 1e-9, torch.float32: 1e-4}  # μ at the end of the path, as a share of min(C, 1 / max ‖x‖²)


class System(NamedTuple):
    """(G + r) dα + dν = right, Σ_k dα = −Σ_k α: Newton's equations at one point, where r is z/s, for any right side."""

    gram: Tensor
    r: Tensor
    free: Tensor
    sums: Tensor  # Σ_k α [B]: 0 up to rounding
    of_class: Tensor  # (G + r)⁻¹ of each class [N, B, B]; zero for what is fixed
    of_rows: Tensor  # the inverse of their sum [B, B]

    def solve(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """dα [N, B] and dν [B]. What rounding left over is solved for once more."""
        alpha, nu = self._once(right, self.sums)
        wrong = (right - alpha @ self.gram - self.r * alpha - nu) * self.free
        more, more_nu = self._once(wrong, self.sums + alpha.sum(0))
        return alpha + more, nu + more_nu

    def _once(self, right: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        alone = _times(self.of_class, right)
        nu = self.of_rows @ (alone.sum(0) + sums)
        return alone - _times(self.of_class, nu.expand_as(right)), nu


def crammer_singer(x: Tensor, y: Tensor, ways: int, c: float) -> Tensor:
    """Rows [B, D] and their classes [B] -> w [N, D], differentiable by x.

    A row of class -100 counts for nothing. A class without a row takes no part: its w is zero.
    """
    member = y == torch.arange(ways, device=y.device)[:, None]  # [N, B]
    precise = torch.float32 if x.device.type == "mps" else torch.float64  # which has no other
    rows = (x * member.any(0)[:, None]).to(precise)
    gram = rows @ rows.T
    with torch.no_grad():
        alpha, rest, system = _solved(gram.detach(), member, c)
    # One more Newton step, whose system is a constant: that is the implicit function theorem.
    return ((alpha + system.solve(rest - alpha @ gram)[0]) @ rows).to(x.dtype)


def _solved(gram: Tensor, member: Tensor, c: float) -> tuple[Tensor, Tensor, System]:
    """α, 1[k = y_b] − z − ν and the system, at the end of the path."""
    free = member.any(1)[:, None] & member.any(0)  # elsewhere α stays 0
    target, end = member.to(gram.dtype), GAP[gram.dtype] / (1 / c + gram.diagonal().amax())
    s = torch.where(free, c / member.any(1).sum().clamp(min=1), 1.0).to(gram.dtype)  # all sums are right, and stay so
    alpha = (c * target - s) * free
    nu = (target - alpha @ gram).masked_fill(~free, torch.inf).amin(0).nan_to_num(posinf=0.0) - 1
    z = torch.where(free, target - alpha @ gram - nu, 1.0)
    for _ in range(STEPS):
        system, wrong = _system(gram, alpha, s, z, free), target - z - nu - alpha @ gram
        ahead, ahead_z, _ = _direction(system, wrong, torch.zeros_like(s), s, z)
        mu = _mean(s * z, free)
        length = _length(ahead, ahead_z, s, z)
        left = _mean((s - length * ahead) * (z + length * ahead_z), free)
        aim = (left * (left / mu.clamp(min=end)) ** 2).clamp(min=end)
        by, by_z, by_nu = _direction(system, wrong, aim + ahead * ahead_z, s, z)
        length = 0.99 * _length(by, by_z, s, z)
        alpha, s, z, nu = alpha + length * by, s - length * by, z + length * by_z, nu + length * by_nu
    return alpha, target - z - nu, _system(gram, alpha, s, z, free)


def _system(gram: Tensor, alpha: Tensor, s: Tensor, z: Tensor, free: Tensor) -> System:
    """With t = 1/√r: (G + r)⁻¹ = t (I + t G t)⁻¹ t, whose matrix has no eigenvalue below 1. Rows beyond the margin
    would have it grow without bound, and drown the others in rounding: t is capped."""
    r = torch.maximum(z / s, GAP[gram.dtype] * gram.diagonal().amax())
    t = free / r.sqrt()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(eye + t[:, :, None] * gram * t[:, None, :], check_errors=False)[0]
    half = torch.linalg.solve_triangular(factor, torch.diag_embed(t), upper=False)
    of_class = half.mT @ half
    absent = torch.diag(~free.any(0)).to(gram.dtype)
    of_rows = torch.linalg.inv_ex(of_class.sum(0) + absent, check_errors=False)[0]
    return System(gram, r, free, alpha.sum(0), of_class, of_rows)


def _direction(system: System, wrong: Tensor, product: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dα, dz and dν towards s z = product."""
    gain = product / s - z
    alpha, nu = system.solve(wrong - gain)
    return alpha, gain + z / s * alpha, nu


def _length(by: Tensor, by_z: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """How much of a step, at most 1, keeps s and z positive."""
    return 1 / torch.maximum((by / s).amax(), (-by_z / z).amax()).clamp(min=1)


def _mean(values: Tensor, free: Tensor) -> Tensor:
    return (values * free).sum() / free.sum().clamp(min=1)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[N, B, B] and [N, B] -> [N, B]."""
    return (matrices @ vectors[..., None])[..., 0]
