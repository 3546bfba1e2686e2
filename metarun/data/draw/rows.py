"""Rows of a table, each an image or a vector with targets: as one training batch, as fixed tasks, or dealt to tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.data.draw.split import ClassSplit, pixels
from metarun.data.draw.tasks import some
from metarun.data.images.mapped import Mapped
from metarun.types import Batch, Draw, Episode, Head, Heads, Targets

MANY = 1000  # rows: of so many, twice as many draws as are needed hold enough different ones


@dataclass(frozen=True)
class Rows:
    """The rows of one split, R of them."""

    image: Tensor  # int64 [R]: the image, or the vector, that a row shows
    turns: Tensor  # int64 [R]: by how many quarter turns
    targets: Targets  # [R] of a class head, [R, size] of a value head
    heads: Heads
    parts: tuple[int, ...] = ()  # the rows of each, where they are of several fixed tasks with heads of their own

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

    images: Tensor | Mapped  # uint8 [M, C, H, W], or vectors [M, D]
    rows: Rows
    shots: int
    fingerprint: str

    @property
    def heads(self) -> Heads:
        """None is alone: rows of fixed tasks are mixed here."""
        return {name: replace(head, alone=False) for name, head in self.rows.heads.items()}

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
class PartSampler:
    """Fixed tasks, each with rows of its own, drawn from them uniformly and with replacement."""

    images: Tensor | Mapped  # uint8 [M, C, H, W], or vectors [M, D]
    rows: Rows  # in parts
    sizes: Tensor  # int64 [parts]: the same, where rows are drawn: to bring them there in each step would wait for it
    shots: int
    fingerprint: str

    @property
    def heads(self) -> Heads:
        return self.rows.heads

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Rows [T, B] of T tasks, ascending and without repetition (all of them where T is as many)."""
        device, sizes = generator.device, self.sizes.to(generator.device)
        task = some(len(sizes), count, generator)
        lots = torch.rand(len(task), self.shots, generator=generator, device=device)
        return {"row": (sizes.cumsum(0) - sizes)[task, None] + (lots * sizes[task, None]).long()}

    def gather(self, draw: Draw) -> Batch:
        """x [T, B, ...], y[head] [T, B]: known in the rows of the task that the head is of."""
        return self.rows.batch(self.images, draw["row"].to(self.images.device))


@dataclass(frozen=True)
class RowEpisodeSampler:
    """Tasks without classes to draw: `shots` rows to learn from, `queries` to be judged by.

    The rows are dealt out like cards: a task holds none twice, and before any is dealt a second time all have been,
    but for a remainder too small for a task. Without shots none is dealt a second time: the same prediction of it would
    tell nothing new, so there are no more tasks than rows give. A task holds rows of one part, where there are several.

    To shuffle all rows in every step of training would take long. With `sizes` each task draws its rows by itself, of
    which again it holds none twice, and the parts take turns.
    """

    images: Tensor | Mapped  # uint8 [M, C, H, W], or vectors [M, D]
    rows: Rows
    shots: int
    queries: int
    fingerprint: str
    sizes: Tensor | None = None  # int64 [parts]: their rows, for training; on the device, as those of fixed tasks are

    @property
    def heads(self) -> Heads:
        return self.rows.heads

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Rows [T, K+Q]: of each part as many tasks, or one more."""
        if self.sizes is not None:
            return {"row": self._drawn(self.sizes.to(generator.device), count, generator)}
        parts = self.rows.parts or (len(self.rows.image),)
        share, more = divmod(count, len(parts))
        dealt, start = [], 0
        for part, size in enumerate(parts):
            dealt.append(start + self._dealt(size, share + (part < more), generator))
            start += size
        return {"row": torch.cat(dealt)}

    def _dealt(self, rows: int, count: int, generator: torch.Generator) -> Tensor:
        """As many tasks of so many rows."""
        each = self.shots + self.queries
        tasks = rows // each  # of one shuffled pack
        packs = -(-count // tasks) if self.shots else 1
        lots = torch.rand(packs, rows, generator=generator, device=generator.device)
        return lots.argsort(1)[:, : tasks * each].reshape(-1, each)[:count]

    def _drawn(self, sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """As many tasks; the part that is first is drawn."""
        device, parts = sizes.device, self.rows.parts or (len(self.rows.image),)
        first = torch.randint(len(parts), (), generator=generator, device=device)
        part = (first + torch.arange(count, device=device)) % len(parts)
        start = (sizes.cumsum(0) - sizes)[part, None]
        return start + different(sizes[part], min(parts), max(parts), self.shots + self.queries, generator)

    def gather(self, draw: Draw) -> Episode:
        batch = self.rows.batch(self.images, draw["row"].to(self.images.device))
        support, query = slice(self.shots), slice(self.shots, None)
        return Episode(
            *(Batch(batch.x[:, part], {name: y[:, part] for name, y in batch.y.items()}) for part in (support, query))
        )


def different(sizes: Tensor, least: int, most: int, count: int, generator: torch.Generator) -> Tensor:
    """So many different numbers below each of the sizes [T], which lie from `least` to `most`; every choice of them, in
    every order, is as likely: int64 [T, count].

    Below large sizes they are the first different ones of twice as many numbers, drawn uniformly: once in 10⁸ draws
    those are too few, and a number is there twice. Below smaller ones they are those with the largest lots.
    """
    device = generator.device
    if least < max(MANY, 32 * count):
        lots = torch.rand(len(sizes), most, generator=generator, device=device)
        return lots.masked_fill(torch.arange(most, device=device) >= sizes[:, None], -1).topk(count).indices
    drawn = (torch.rand(len(sizes), 2 * count, generator=generator, device=device) * sizes[:, None]).long()
    ordered, place = drawn.sort(stable=True)
    again = torch.zeros_like(drawn).scatter(1, place[:, 1:], (ordered.diff() == 0).long())
    return drawn.gather(1, again.argsort(stable=True)[:, :count])
