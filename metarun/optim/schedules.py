"""Factors on the outer learning rate: functions of (step, steps)."""

from __future__ import annotations

import math

from metarun.types import Count, Natural, Rate, UserError


def constant(step: int, steps: int) -> float:
    """The same rate at every step."""
    return 1.0


def linear(step: int, steps: int, final: Rate) -> float:
    """The factor falls from 1 to `final` in a straight line."""
    return 1 - (1 - final) * step / steps


def cosine(step: int, steps: int, final: Rate, warmup: Natural) -> float:
    """The factor falls from 1 to `final` along half a cosine, after `warmup` steps of linear rise."""
    if warmup > steps:
        raise UserError(f"schedule.warmup={warmup} is longer than train.steps={steps}. Lower it, or train longer.")
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def step(step: int, steps: int, every: Count, factor: Rate) -> float:
    """The rate is multiplied by `factor` after each `every` steps."""
    return factor ** (step // every)
