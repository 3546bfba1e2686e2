from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarun.balance.solve.spectrum import above, inverse_root, largest

VALUES = {
    "one": [0.5],
    "spread": [1.0, 1e-2, 1e-4, 3e-6, 1.1e-6],
    "many": [*torch.logspace(0, -5, 32).tolist()],
    "near": [0.3, 0.3 * (1 - 1e-9), 0.1],
}


def symmetric(values: list[float]) -> tuple[Tensor, Tensor]:
    """A matrix of these eigenvalues, and its eigenvectors."""
    size = len(values)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
        0
    ]
    matrix = vectors @ torch.tensor(values, dtype=torch.float64).diag() @ vectors.T
    return (matrix + matrix.T) / 2, vectors


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_inverse_root_twice_applied_undoes_the_matrix(values: list[float]) -> None:
    matrix, _ = symmetric(values)
    root = inverse_root(matrix, 1e-6)
    eye = torch.eye(len(values), dtype=torch.float64)
    assert torch.allclose(root @ root @ matrix, eye, atol=1e-8) and torch.allclose(root, root.T, rtol=1e-8)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_largest_eigenvalue_is_found_however_near_the_next_one_is(values: list[float]) -> None:
    assert largest(symmetric(values)[0]).item() == pytest.approx(max(values), rel=1e-8)


@pytest.mark.parametrize("noise", [0.0, 1e-9, -1e-9])
def test_the_projector_keeps_what_lies_above_and_nothing_else(noise: float) -> None:
    matrix, vectors = symmetric([1.0, 0.3, 2e-6, noise, 2 * noise])
    expected = vectors[:, :3] @ vectors[:, :3].T
    assert torch.allclose(above(matrix, 1e-6), expected, atol=1e-9)
