"""Functions of a symmetric matrix without its eigenvectors: to compute those is to wait for a GPU.

Newton's x ← ½ (ζx + 1/(ζx)), applied to a matrix, brings each of its eigenvalues x to its sign. With the factors ζ that
Byers and Xu give for sizes between `least` and 1 this takes nine steps, however small `least` is.

Byers, Xu: A New Scaling for Newton's Iteration for the Polar Decomposition. SIAM J. Matrix Anal. Appl. 30, 2008.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

STEPS = 9
DOUBLINGS = 26  # of the power whose trace has the largest eigenvalue alone


def above(matrix: Tensor, least: float) -> Tensor:
    """The projector on the eigenvectors of eigenvalues above `least`, of a matrix that has none above 1 in size."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    x = matrix - least * eye
    for scale in _scales(least / 8):
        x = 0.5 * (scale * x + _inverse(x) / scale)
    return (eye + x) / 2


def inverse_root(matrix: Tensor, least: float) -> Tensor:
    """The inverse square root of a matrix with eigenvalues between `least` and 1: the product form of Denman and
    Beavers' iteration, m being the square of Newton's x."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    m, root = matrix, eye
    for scale in _scales(least**0.5):
        m = scale**2 * m
        inverse = _inverse(m)
        root = scale / 2 * (root + root @ inverse)
        m = (eye + (m + inverse) / 2) / 2
    return root


def largest(matrix: Tensor) -> Tensor:
    """The largest eigenvalue of a matrix that has none below 0: tr(A Aⁿ) / tr Aⁿ, n being a high power of two."""
    power = matrix
    for _ in range(DOUBLINGS):
        power = power / power.diagonal().sum().clamp(min=torch.finfo(power.dtype).tiny)
        power = power @ power
    return (matrix * power).sum() / power.diagonal().sum().clamp(min=torch.finfo(power.dtype).tiny)


def _scales(least: float) -> Iterator[float]:
    """ζ of each step."""
    yield least**-0.5
    scale = (2 * least**0.5 / (1 + least)) ** 0.5
    for _ in range(STEPS - 1):
        yield scale
        scale = (2 / (scale + 1 / scale)) ** 0.5


def _inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.inv_ex(matrix, check_errors=False)[0]
