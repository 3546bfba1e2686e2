from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths.distil import soft_loss
from metarun.maths.losses import labelled
from metarun.maths.prototypes import NEVER
from metarun.types import Head

DOUBLE = {"dtype": torch.float64}
CLASS, BOTH = {"c": Head("class", 4)}, {"c": Head("class", 4), "v": Head("value", 2)}
ALL = {"c": torch.ones(5).bool()}


def logits(seed: int, rows: int = 5) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), **DOUBLE)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_slope_of_a_students_logits_is_the_difference_of_softened_guesses(temperature: float) -> None:
    """∂/∂s of T² KL(softmax(t / T) ‖ softmax(s / T)) = T (softmax(s / T) − softmax(t / T)), a mean over rows."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = soft_loss(CLASS, {"c": student}, {"c": teacher}, ALL, temperature)
    log_p, log_q = (F.log_softmax(t / temperature, -1) for t in (teacher, student))
    assert torch.allclose(loss, temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
    (slope,) = torch.autograd.grad(loss, student)
    assert torch.allclose(slope, temperature * (log_q.exp() - log_p.exp()) / 5, atol=1e-12)


def test_a_student_that_says_what_its_teacher_says_has_no_slope() -> None:
    student = logits(0).requires_grad_()
    loss = soft_loss(CLASS, {"c": student}, {"c": student.detach()}, ALL, 3.0)
    assert abs(loss.item()) < 1e-14 and torch.autograd.grad(loss, student)[0].abs().max() < 1e-15


def test_rows_that_do_not_count_are_nothing_and_heads_count_alike() -> None:
    values, told = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(2), **DOUBLE)
    outputs, taught = {"c": logits(0), "v": values}, {"c": logits(1), "v": told}
    rows = {"c": torch.tensor([True, False, True, False, True]), "v": torch.arange(5) < 4}
    of_classes = soft_loss(
        CLASS, {"c": logits(0)[rows["c"]]}, {"c": logits(1)[rows["c"]]}, {"c": torch.ones(3).bool()}, 2.0
    )
    of_values = (values - told)[:4].square().mean()
    assert torch.allclose(soft_loss(BOTH, outputs, taught, rows, 2.0), (of_classes + of_values) / 2, atol=1e-12)
    rows["v"][:] = False
    assert torch.allclose(soft_loss(BOTH, outputs, taught, rows, 2.0), of_classes, atol=1e-12)


def test_a_row_is_labelled_where_it_has_a_class_or_all_its_values() -> None:
    values = torch.zeros(5, 2)
    values[1], values[3, 0] = torch.nan, torch.nan
    assert labelled(BOTH["c"], torch.tensor([1, -100, 2, -100, 0])).tolist() == [True, False, True, False, True]
    assert labelled(BOTH["v"], values).tolist() == [True, False, True, False, True]


def test_a_class_that_the_teacher_excludes_gives_no_nan() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    teacher[:, 3] = NEVER
    loss = soft_loss(CLASS, {"c": student}, {"c": teacher}, ALL, 1.0)
    (slope,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and slope.isfinite().all() and (slope[:, 3] > 0).all()
