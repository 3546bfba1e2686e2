"""Rows of a table, each an image with a target of every head: as one training batch, or dealt out to tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.data.draw.split import ClassSplit, pixels
from metarun.data.images.mapped import Mapped
from metarun.types import Batch, Draw, Episode, Head, Heads, Targets


@dataclass(frozen=True)
class Rows:
    """The rows of one split, R of them."""

    image: Tensor  # int64 [R]: the image that a row shows
    turns: Tensor  # int64 [R]: by how many quarter turns
    targets: Targets  # [R] of a class head, [R, size] of a value head
    heads: Heads

    @staticmethod
    def of_classes(split: ClassSplit) -> Rows:
        """Every image of a split, with its class among all classes as the one target, "all"."""
        classes, longest = split.rows.shape
        here = torch.arange(longest, device=split.rows.device) < split.counts[:, None]
        owner = torch.arange(classes, device=here.device)[:, None].expand_as(here)[here]
        return Rows(split.rows[here], split.turns[owner], {"all": owner}, {"all": Head("class", classes)})

    def to(self, device: torch.device) -> Rows:
        targets = {name: target.to(device) for name, target in self.targets.items()}
        return replace(self, image=self.image.to(device), turns=self.turns.to(device), targets=targets)

    def batch(self, images: Tensor | Mapped, chosen: Tensor) -> Batch:
        """The chosen rows [T, B], read from all images."""
        x = pixels(images, self.image[chosen], self.turns[chosen])
        return Batch(x, {name: target[chosen] for name, target in self.targets.items()})


@dataclass(frozen=True)
class RowSampler:
    """One batch that all heads share, of rows drawn uniformly and with replacement."""

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    rows: Rows
    shots: int
    fingerprint: str

    @property
    def heads(self) -> Heads:
        return self.rows.heads

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Rows [count * shots]."""
        shape = (count * self.shots,)
        return {"row": torch.randint(len(self.rows.image), shape, generator=generator, device=generator.device)}

    def gather(self, draw: Draw) -> Batch:
        """One task of all rows: x [1, B, ...], y[head] [1, B]."""
        return self.rows.batch(self.images, draw["row"].to(self.images.device)[None])


@dataclass(frozen=True)
class RowEpisodeSampler:
    """Tasks without classes to draw: `shots` rows to learn from, `queries` to be judged by.

    The rows are dealt out like cards: a task holds none twice, and before any is dealt a second time all have been,
    but for a remainder too small for a task.
    """

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    rows: Rows
    shots: int
    queries: int
    fingerprint: str

    @property
    def heads(self) -> Heads:
        return self.rows.heads

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Rows [T, K+Q]."""
        each = self.shots + self.queries
        tasks = len(self.rows.image) // each  # of one shuffled pack
        lots = torch.rand(-(-count // tasks), len(self.rows.image), generator=generator, device=generator.device)
        return {"row": lots.argsort(1)[:, : tasks * each].reshape(-1, each)[:count]}

    def gather(self, draw: Draw) -> Episode:
        batch = self.rows.batch(self.images, draw["row"].to(self.images.device))
        support, query = slice(self.shots), slice(self.shots, None)
        return Episode(
            *(Batch(batch.x[:, part], {name: y[:, part] for name, y in batch.y.items()}) for part in (support, query))
        )
