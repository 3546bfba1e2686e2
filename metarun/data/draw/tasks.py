"""A fixed set of named tasks, each with a head of its own: what multi-task learning trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.data.draw.split import ClassSplit, pixels
from metarun.data.images.mapped import Mapped
from metarun.types import Batch, Draw, Head, Heads


def some(there: int, count: int, generator: torch.Generator) -> Tensor:
    """So many of the tasks that are there, or all of them: int64, ascending and without repetition."""
    lots = torch.rand(there, generator=generator, device=generator.device)
    return lots.topk(min(count, there)).indices.sort().values


@dataclass(frozen=True)
class TaskSampler:
    """T of the tasks, in order, `shots` images of each: y[name] [T, B] is known (not -100) in that task's own row."""

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    split: ClassSplit  # its classes sorted by task
    names: tuple[str, ...]
    sizes: Tensor  # int64 [tasks]: classes of each
    shots: int
    fingerprint: str

    @staticmethod
    def of_groups(images: Tensor | Mapped, split: ClassSplit, shots: int, fingerprint: str) -> TaskSampler:
        """The classes of one group (an alphabet of Omniglot) are a task."""
        names = tuple(sorted(set(split.groups)))
        task = torch.tensor([names.index(group) for group in split.groups], device=images.device)
        order = task.argsort(stable=True)
        ordered = replace(
            split,
            rows=split.rows[order],
            counts=split.counts[order],
            turns=split.turns[order],
            names=tuple(split.names[c] for c in order.tolist()),
            groups=tuple(split.groups[c] for c in order.tolist()),
        )
        sizes = torch.bincount(task, minlength=len(names))
        return TaskSampler(images, ordered, names, sizes, shots, fingerprint)

    @property
    def heads(self) -> Heads:
        sizes = zip(self.names, self.sizes.tolist(), strict=True)
        return {name: Head("class", size, gaps=True, alone=True) for name, size in sizes}

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Tasks [T] ascending and without repetition (all of them where T is as many), classes and images [T, B] with.

        They ascend so that what an algorithm remembers of each task finds it in the same place.
        """
        device = generator.device
        tasks = min(count, len(self.names))
        task = torch.rand(len(self.names), generator=generator, device=device).topk(tasks).indices
        lots = torch.rand(2, tasks, self.shots, generator=generator, device=device)
        way = (lots[0] * self.sizes.to(device)[task, None]).long()
        starts = (self.sizes.cumsum(0) - self.sizes).to(device)
        image = (lots[1] * self.split.counts.to(device)[starts[task, None] + way]).long()
        task, order = task.sort()
        return {"task": task, "way": way[order], "image": image[order]}

    def gather(self, draw: Draw) -> Batch:
        task, way, image = (draw[key].to(self.images.device) for key in ("task", "way", "image"))
        starts = self.sizes.cumsum(0) - self.sizes
        classes = starts[task, None] + way
        x = pixels(self.images, self.split.rows[classes, image], self.split.turns[classes])
        each = torch.arange(len(self.names), device=x.device)[:, None, None]
        y = torch.where(task[:, None] == each, way, -100)  # [tasks, T, B]
        return Batch(x, dict(zip(self.names, y.unbind(), strict=True)))
