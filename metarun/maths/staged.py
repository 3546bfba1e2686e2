"""A trunk taken apart at its stages, for architectures that join several trunks between them.

A trunk states its stages as `stages`, an nn.Sequential that its forward pass sends its input through first; what the
pass does to the outcome (a mean over positions, hidden layers) is the trunk without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from metarun.types import UserError


def apart(trunk: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """The stages, and the trunk without them."""
    stages = getattr(trunk, "stages", None)
    if not isinstance(stages, nn.Sequential) or not len(stages):
        raise UserError(
            f"sharing: trunks are joined after each of their stages, and this backbone ({type(trunk).__name__}) states "
            "none. Take another backbone, as conv4, or a sharing= of whole trunks, as mmoe."
        )
    each = [*stages]
    del stages[:]
    return each, trunk


def parts(trunk: nn.Module) -> list[nn.Module]:
    """Its stages and what follows them, which is a part by itself where it learns something, else one with the last
    stage."""
    stages, rest = apart(trunk)
    if any(True for _ in rest.parameters()):
        return [*stages, rest]
    return [*stages[:-1], nn.Sequential(stages[-1], rest)]


def shapes(modules: Sequence[nn.Module], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What each of several modules, one after the other, makes of one input of a shape."""
    found, x = [], torch.zeros(2, *shape)
    with torch.no_grad():
        for module in modules:
            x = module(x)
            found.append(tuple(x.shape[1:]))
    return found
