"""MultiMNIST: two overlapping digits, one to the upper left and one to the lower right, to be told both.

The left digit lies at [0:28], the right one at [6:34] of a canvas of 36x36 pixels, both ways; a pixel shows the lighter
of the two; the nearest pixels make it 28x28 again. Within each split every image is the left digit once and the right
one once, so no image of a digit is in two splits. Fashion-MNIST's garments make another data set in the same way.

Sabour, Frosst, Hinton: Dynamic Routing Between Capsules. NeurIPS 2017, arXiv 1710.09829.
Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018, arXiv 1810.04650.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.data.draw.split import stored
from metarun.data.draw.table import TableData
from metarun.data.images import mnist
from metarun.data.images.cache import cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.mapped import PIECE, Resident
from metarun.data.images.root import root_of
from metarun.types import COMPUTE_ONLY, Count, Head, Natural, Place, Seed

CANVAS, LEFT, RIGHT = 36, 0, 6  # pixels each way; where the two digits begin on it
HEADS = {"left": Head("class", mnist.CLASSES), "right": Head("class", mnist.CLASSES)}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MultiMnist:
    """Ink is 1, paper is 0. There are no classes to draw: a task is rows that are predicted together."""

    source: mnist.Source
    root: Place
    pairs_seed: Seed
    ways: Count
    shots: Natural
    queries: Count
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> TableData:
        digits, parts = mnist.digits(self.source, root_of(self.root)), mnist.dealt()
        key = {"digits": digits.fingerprint, "seed": self.pairs_seed}
        collection = cached("multimnist", key, lambda: _paired(digits, parts, self.pairs_seed))
        targets = {"left": collection.labels // mnist.CLASSES, "right": collection.labels % mnist.CLASSES}
        protocol = {"split": f"{self.source}, {mnist.split_in_words()}", "rotations": "none"}
        data = TableData.dealt("multimnist", collection, parts, targets, HEADS, protocol, "accuracy")
        return data.to(device, self.resident)


def _paired(digits: Collection, parts: Mapping[str, Tensor], seed: int) -> Recipe:
    """Image m has digit m on the left; its label is the left class times ten plus the right one."""
    log.info("Making MultiMNIST (once; the cache keeps it)")
    generator = torch.Generator().manual_seed(seed)
    partner = torch.empty_like(digits.labels)
    for chosen in parts.values():
        partner[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    labels = mnist.CLASSES * digits.labels + digits.labels[partner]
    names = tuple(f"{left} {right}" for left in digits.names for right in digits.names)

    def pieces() -> Iterator[Tensor]:
        for left, right in zip(torch.arange(len(partner)).split(PIECE), partner.split(PIECE), strict=True):
            yield overlaid(stored(digits.images, left), stored(digits.images, right))

    return Recipe(pieces(), (1, mnist.SIZE, mnist.SIZE), labels, names, ("all",) * len(names))


def overlaid(left: Tensor, right: Tensor) -> Tensor:
    """Images [M, 1, 28, 28] of two digits each, of the same shape."""
    canvas = left.new_zeros(*left.shape[:2], CANVAS, CANVAS)
    for digit, start in ((left, LEFT), (right, RIGHT)):
        place = canvas[..., start : start + mnist.SIZE, start : start + mnist.SIZE]
        place.copy_(torch.maximum(place, digit))
    nearest = ((torch.arange(mnist.SIZE) + 0.5) * CANVAS / mnist.SIZE).long()
    return canvas[..., nearest[:, None], nearest]
