"""The classes of a split, and the images that a draw chose from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.data.images.mapped import Mapped


@dataclass(frozen=True)
class ClassSplit:
    """The classes of one split. A class turned by 90° is a class of its own."""

    rows: Tensor  # int64 [classes, longest]: a class's images, padded with 0
    counts: Tensor  # int64 [classes]
    turns: Tensor  # int64 [classes]: quarter turns
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def to(self, device: torch.device) -> ClassSplit:
        return replace(self, rows=self.rows.to(device), counts=self.counts.to(device), turns=self.turns.to(device))


def pixels(images: Tensor | Mapped, rows: Tensor, turns: Tensor) -> Tensor:
    """The images at `rows`, each turned by 90° `turns` times, as floats in [0, 1]."""
    chosen = images.read(rows).unflatten(0, rows.shape) if isinstance(images, Mapped) else images[rows]
    if chosen.shape[-1] == chosen.shape[-2]:
        turns = turns[..., None, None, None]
        chosen = torch.where(turns >= 2, chosen.flip(-2, -1), chosen)
        chosen = torch.where(turns % 2 == 1, chosen.rot90(1, (-2, -1)), chosen)
    return chosen.float().div_(255)
