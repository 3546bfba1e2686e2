"""MNIST as three tasks on one image: which digit it is, whether that is odd, and how much ink it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.data.draw.rows import Rows
from metarun.data.draw.table import TableData
from metarun.data.images import mnist
from metarun.data.images.collection import Collection
from metarun.data.images.mapped import PIECE, Resident
from metarun.data.images.root import root_of
from metarun.types import COMPUTE_ONLY, Count, Head, Natural, Place, Targets

HEADS = {"digit": Head("class", mnist.CLASSES), "parity": Head("class", 2), "ink": Head("value", 1)}


@dataclass(frozen=True)
class MnistTasks:
    """Ink is 1, paper is 0. There are no classes to draw: a task is rows that are predicted together."""

    root: Place
    ways: Count
    shots: Natural
    queries: Count
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> TableData:
        collection, parts = mnist.digits("mnist", root_of(self.root)), mnist.dealt()
        targets = _targets(collection, parts["train"])
        splits = {name: _rows(targets, chosen) for name, chosen in parts.items()}
        protocol = {"split": mnist.split_in_words(), "rotations": "none"}
        data = TableData("mnist_tasks", collection.images, splits, collection.fingerprint, protocol, "digit/accuracy")
        return data.to(device, self.resident)


def _targets(collection: Collection, train: Tensor) -> Targets:
    """Of all images. Ink is the mean of an image's pixels, shifted and scaled to mean 0 and variance 1 in training."""
    digit = collection.labels
    ink = torch.cat([piece.flatten(1).sum(1) for piece in collection.images.split(PIECE)]).double()
    ink = (ink - ink[train].mean()) / ink[train].std(correction=0)
    return {"digit": digit, "parity": digit % 2, "ink": ink.float()[:, None]}


def _rows(targets: Targets, chosen: Tensor) -> Rows:
    return Rows(chosen, torch.zeros_like(chosen), {name: target[chosen] for name, target in targets.items()}, HEADS)
