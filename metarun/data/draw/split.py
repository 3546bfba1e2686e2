"""The classes of a split, and the images that a draw chose from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metarun.data.images.mapped import Mapped

# What becomes of a split's classes. True: turned by 90°, 180° and 270°, each is three classes more. "episode": in every
# episode that it is drawn for, a class is turned by as many quarter turns as the lot says.
Turning = bool | Literal["episode"]


def in_words(turned: Mapping[str, Turning]) -> str:
    """How the classes of each split are turned; those of train and val alike."""
    kinds = {True: "90° as classes", "episode": "a random quarter turn for each class of an episode"}
    train, test = turned["train"], turned["test"]
    if train == test:
        return f"{kinds[train]} in training, validation and test" if train else "none"
    if not train:
        return f"{kinds[test]} in test only"
    return f"{kinds[train]} in training and validation; " + (f"{kinds[test]} in test" if test else "test upright")


@dataclass(frozen=True)
class ClassSplit:
    """The classes of one split. A class turned by 90° is a class of its own, unless episodes turn it."""

    rows: Tensor  # int64 [classes, longest]: a class's images, padded with 0
    counts: Tensor  # int64 [classes]
    turns: Tensor  # int64 [classes]: quarter turns
    names: tuple[str, ...]
    groups: tuple[str, ...]
    by_episode: bool = False  # each class of an episode is turned by a quarter turn drawn for it there

    def to(self, device: torch.device) -> ClassSplit:
        return replace(self, rows=self.rows.to(device), counts=self.counts.to(device), turns=self.turns.to(device))


def stored(images: Tensor | Mapped, rows: Tensor) -> Tensor:
    """The images at `rows`, as they are."""
    return images.read(rows).unflatten(0, rows.shape) if isinstance(images, Mapped) else images[rows]


def pixels(images: Tensor | Mapped, rows: Tensor, turns: Tensor) -> Tensor:
    """The images at `rows`, each turned by 90° `turns` times, as floats in [0, 1]; vectors are what they are."""
    chosen = stored(images, rows)
    if chosen.is_floating_point():
        return chosen
    if chosen.shape[-1] == chosen.shape[-2]:
        turns = turns[..., None, None, None]
        chosen = torch.where(turns >= 2, chosen.flip(-2, -1), chosen)
        chosen = torch.where(turns % 2 == 1, chosen.rot90(1, (-2, -1)), chosen)
    return chosen.float().div_(255)
