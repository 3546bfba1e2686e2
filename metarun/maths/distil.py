"""Distillation: a student is told what its teacher makes of an image, beside the label.

    T² KL(softmax(t / T) ‖ softmax(s / T))    of logits s of the student and t of the teacher, T the temperature
    ‖s − t‖²                                    of values

T² keeps the size of the slope, which falls as 1 / T².

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metarun.maths.losses import mean
from metarun.types import Heads, Outputs, Score


def soft_loss(
    heads: Heads, outputs: Outputs, taught: Outputs, counted: Mapping[str, Tensor], temperature: float
) -> Tensor:
    """How far the student's outputs are from what the teacher tells: the mean over those rows of each head that count
    [B], and over heads."""
    losses, rows = {}, {}
    for name, head in heads.items():
        if head.kind == "value":
            each = (outputs[name] - taught[name]).square().mean(-1)
        else:
            each = _divergence(outputs[name], taught[name], temperature)
        rows[name] = counted[name].sum().to(each.dtype)
        losses[name] = each.masked_fill(~counted[name], 0.0).sum() / rows[name].clamp(min=1)
    return mean(Score(losses, rows, {name: {} for name in losses}))[0]


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL of each row [B]; a class that the teacher excludes adds nothing."""
    p = (teacher / temperature).softmax(-1)
    return temperature**2 * (torch.xlogy(p, p) - p * (student / temperature).log_softmax(-1)).sum(-1)
