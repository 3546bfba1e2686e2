from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metarun.maths.closed_head import imprinted, logistic, nearest


def problem(rows: int, ways: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit features of no negative entries, as a trunk gives them: all cosines are large."""
    generator = torch.Generator().manual_seed(rows)
    y = torch.arange(ways).repeat(rows // ways)
    noise, centres = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (rows, ways))
    return F.normalize((noise + centres[y] + 2).relu(), dim=-1), y


@pytest.mark.parametrize(("rows", "ways", "width"), [(5, 5, 64), (25, 5, 64), (9, 3, 4), (20, 20, 16), (100, 20, 64)])
def test_logistic_regression_is_scikit_learns(rows: int, ways: int, width: int) -> None:
    x, y = problem(rows, ways, width)
    expected = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit(x.numpy(), y.numpy())
    weight, bias = logistic(x, y, ways)
    assert np.allclose(weight, expected.coef_, atol=1e-4) and np.allclose(bias, expected.intercept_, atol=1e-4)
    single, _ = logistic(x.float(), y, ways)
    assert np.allclose(single, expected.coef_, atol=1e-4)


def test_logistic_regression_of_two_classes_has_no_slope_left() -> None:
    """There scikit-learn has one vector for both, whose penalty is another."""
    x, y = problem(8, 2, 5)
    weight, bias = (t.requires_grad_() for t in logistic(x, y, 2))
    loss = F.cross_entropy(x @ weight.T + bias, y, reduction="sum") + weight.square().sum() / 2
    assert all(slope.abs().max() < 1e-6 for slope in torch.autograd.grad(loss, [weight, bias]))


@pytest.mark.parametrize("fit", [nearest, imprinted, logistic])
def test_mapped_over_tasks_a_layer_is_that_of_each_task_alone(fit) -> None:  # type: ignore[no-untyped-def]
    x, y = problem(40, 4, 6)
    tasks = x.view(5, 8, 6), y.view(5, 8)
    mapped = torch.vmap(lambda x, y: fit(x, y, 4))(*tasks)
    for t in range(5):
        for one, other in zip(mapped, fit(tasks[0][t], tasks[1][t], 4), strict=True):
            assert torch.allclose(one[t], other, atol=1e-12)


def test_a_class_without_a_row_changes_nothing_for_the_others() -> None:
    x, y = problem(12, 3, 6)
    for fit in (nearest, imprinted, logistic):
        (weight, bias), (more, biases) = fit(x, y, 3), fit(x, y, 4)
        assert torch.allclose(more[:3], weight, atol=1e-12) and torch.allclose(biases[:3], bias, atol=1e-12)
        assert not more[3].any() and biases[3] == -1e30
