from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from metarun.maths.svm import crammer_singer

SIZES = [(5, 1, 16, 0.1), (5, 5, 4, 1.0), (3, 10, 4, 10.0), (2, 4, 3, 0.5)]  # classes, rows of each, features, C


def problem(ways: int, shots: int, features: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clouds that overlap."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(ways).repeat(shots)
    centres, noise = (torch.randn(n, features, generator=generator, dtype=torch.float64) for n in (ways, len(y)))
    return spread * (centres[y] / 2 + noise), y


@pytest.mark.parametrize(("ways", "shots", "features", "c"), SIZES)
def test_the_solution_is_scikit_learns(ways: int, shots: int, features: int, c: float) -> None:
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is not installed: pip install metarun[dev]")
    x, y = problem(ways, shots, features)
    w = crammer_singer(x, y, ways, c)
    if ways == 2:  # w₀ = −w₁ = −w/2: the cost is ¼ ‖w‖² + C Σ (1 − ±w·x)₊, half that of SVC's 2C without its bias
        peer = svm.LinearSVC(loss="hinge", fit_intercept=False, C=2 * c, tol=1e-10, max_iter=10**6)
    else:
        peer = svm.LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=c, tol=1e-10, max_iter=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.from_numpy(peer.fit(x.numpy(), y.numpy()).coef_)
    expected = torch.cat([-found, found]) / 2 if ways == 2 else found
    assert torch.allclose(w, expected, atol=1e-5)


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_the_cost_is_that_of_its_dual_so_neither_can_be_better(spread: float, c: float) -> None:
    """Duality: cost(w) − gain(α) is 0 at the optimum alone, and w is linear in α, which a pseudo-inverse gets back."""
    x, y = problem(5, 3, 64, spread)
    w = crammer_singer(x, y, 5, c)
    alpha = w @ torch.linalg.pinv(x)
    rows = torch.arange(len(y))
    margins = x @ w.T - (x @ w.T)[rows, y][:, None] + (y[:, None] != torch.arange(5))
    cost = w.square().sum() / 2 + c * margins.amax(1).sum()
    gain = alpha[y, rows].sum() - w.square().sum() / 2
    assert (alpha.sum(0).abs() < 1e-6 * c).all() and (alpha <= c * (y == torch.arange(5)[:, None]) + 1e-6 * c).all()
    assert 0 <= (cost - gain) / gain < 1e-4


@pytest.mark.parametrize(("ways", "shots", "features", "c"), SIZES)
def test_the_slope_is_that_of_finite_differences(ways: int, shots: int, features: int, c: float) -> None:
    x, y = problem(ways, shots, features)
    generator = torch.Generator().manual_seed(1)
    way, asked = (torch.randn(n, features, generator=generator, dtype=torch.float64) for n in (len(x), ways))
    (slope,) = torch.autograd.grad((asked * crammer_singer(x.requires_grad_(), y, ways, c)).sum(), x)
    eps = 1e-6
    high, low = ((asked * crammer_singer(x.detach() + e * way, y, ways, c)).sum() for e in (eps, -eps))
    assert float((high - low) / (2 * eps)) == pytest.approx(float((slope * way).sum()), rel=1e-4)


def test_rows_and_classes_that_are_not_there_change_nothing_beneath_vmap_and_alone() -> None:
    x, y = problem(3, 2, 4)
    more = torch.cat([problem(2, 2, 4)[0], x])
    named = torch.cat([torch.full((4,), -100), torch.tensor([1, 4, 2])[y]])
    w = torch.zeros(6, 4, dtype=torch.float64)
    w[[1, 4, 2]] = crammer_singer(x, y, 3, 1.0)
    both = torch.vmap(lambda x, y: crammer_singer(x, y, 6, 1.0))(torch.stack([more] * 2), torch.stack([named] * 2))
    assert torch.allclose(both, w.expand(2, -1, -1), atol=1e-9)
    assert torch.allclose(crammer_singer(more, named, 6, 1.0), w, atol=1e-9)


@pytest.mark.parametrize("y", [[0] * 6, [-100] * 6, [1, 0, 1, 0, 1, 0]], ids=["one class", "none", "both ways"])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e3])
def test_what_cannot_be_separated_gives_no_nan(y: list[int], spread: float) -> None:
    x = problem(2, 3, 4, spread)[0].float()
    x[1] = x[0]  # of another class
    w = crammer_singer(x.requires_grad_(), torch.tensor(y), 3, 0.1)
    (slope,) = torch.autograd.grad(w.square().sum(), x)
    assert w.isfinite().all() and slope.isfinite().all() and w.dtype == torch.float32
