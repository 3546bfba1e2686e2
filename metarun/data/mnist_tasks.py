"""MNIST as several tasks on one image: which digit it is, that modulo 3, whether it is odd, how much ink it shows, and
how far it leans.

Ink is the mean of the pixels. Slant is −μ₁₁ / μ₀₂ of the image's second central moments: the s of the line x = −s·y (y
downwards) through its centre of mass that fits its ink best, more than 0 where it leans to the right, as italics do.
Both are shifted and scaled to mean 0 and variance 1 in training: that of all images, also where few of them train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.data.draw.named import picked
from metarun.data.draw.table import TableData, metric_of
from metarun.data.images import mnist
from metarun.data.images.collection import Collection
from metarun.data.images.mapped import PIECE, Resident
from metarun.data.images.root import root_of
from metarun.types import COMPUTE_ONLY, Count, Head, Natural, Place, Seed, Targets, UserError

HEADS = {
    "digit": Head("class", mnist.CLASSES),
    "mod3": Head("class", 3),
    "parity": Head("class", 2),
    "ink": Head("value", 1),
    "slant": Head("value", 1),
}


@dataclass(frozen=True)
class MnistTasks:
    """Ink is 1, paper is 0. There are no classes to draw: a task is rows that are predicted together."""

    root: Place
    heads: Sequence[str]
    examples: Count | None
    examples_seed: Seed
    ways: Count
    shots: Natural
    queries: Count
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> TableData:
        heads = {name: HEADS[name] for name in picked("data.heads", self.heads, HEADS, "head")}
        collection, parts = mnist.digits("mnist", root_of(self.root)), mnist.dealt()
        targets = _targets(collection, parts["train"])
        split = mnist.split_in_words()
        if self.examples is not None:
            parts["train"] = self._few(parts["train"], collection.labels)
            split += f"; {self.examples} of each digit train (seed {self.examples_seed})"
        protocol = {"split": split, "rotations": "none"}
        data = TableData.dealt("mnist_tasks", collection, parts, targets, heads, protocol, metric_of(heads))
        return data.to(device, self.resident)

    def _few(self, train: Tensor, labels: Tensor) -> Tensor:
        """So many training images of each digit: those of fewer are among those of more."""
        assert self.examples is not None
        order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(self.examples_seed))]
        each = [order[labels[order] == digit] for digit in range(mnist.CLASSES)]
        fewest = min(map(len, each))
        if self.examples > fewest:
            raise UserError(
                f"data.examples={self.examples}: of one digit there are {fewest} training images. Lower it, or leave "
                "it out for all."
            )
        return torch.cat([images[: self.examples] for images in each]).sort().values


def _targets(collection: Collection, train: Tensor) -> Targets:
    """Of all images, for every head there is."""

    def value(measure: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.cat([measure(piece[:, 0].double()) for piece in collection.images.split(PIECE)])
        return ((found - found[train].mean()) / found[train].std(correction=0)).float()[:, None]

    digit = collection.labels
    return {"digit": digit, "mod3": digit % 3, "parity": digit % 2, "ink": value(_ink), "slant": value(_slant)}


def _ink(images: Tensor) -> Tensor:
    """The sum of each image's pixels [M], of images [M, H, W]."""
    return images.flatten(1).sum(1)


def _slant(images: Tensor) -> Tensor:
    """Of each image, minus its central moment in x and y over that in y [M]; an image of one row leans nowhere."""
    mass = _ink(images).clamp(min=1)
    place = torch.arange(images.shape[1], dtype=images.dtype, device=images.device)
    x = place - (images.sum(1) @ place / mass)[:, None]  # from the centre of mass: [M, W]
    y = place - (images.sum(2) @ place / mass)[:, None]
    down = torch.einsum("mij,mi,mi->m", images, y, y)
    return -torch.einsum("mij,mi,mj->m", images, y, x) / down.clamp(min=1)
