"""Fresh N-way K-shot tasks from the classes of a split, drawn by index arithmetic on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metarun.data.draw.split import ClassSplit, pixels
from metarun.data.images.mapped import Mapped
from metarun.types import Batch, Draw, Episode, Head, Heads

CLASS = "class"


@dataclass(frozen=True)
class Sizes:
    """Of tasks: the fewest and the most ways and shots, and for each way so many queries and unlabelled images."""

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int
    unlabelled: int = 0

    @property
    def gaps(self) -> bool:
        """Whether some rows have no class."""
        return self.unlabelled > 0 or any(low < high for low, high in (self.ways, self.shots))


@dataclass(frozen=True)
class EpisodeSampler:
    """Rows of a support or query set go shot by shot: each N consecutive rows hold one image of every way.

    Tasks of fewer ways or shots than the most are filled up with rows of their own, once more and without their class,
    so that the statistics of a task's images are of no other task. Unlabelled rows come last in a support set.
    With `groups`, the ways of a task come from one of them, drawn uniformly for each task. A task asks for its classes,
    as the head "class", and for whatever else is known of the images.
    """

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    split: ClassSplit
    sizes: Sizes
    fingerprint: str
    groups: Tensor | None = None  # bool [G, classes]: the members of each, as many as the most ways or more
    values: Mapping[str, Tensor] = field(default_factory=dict)  # float [M]: by name, of each image
    asked: Sequence[str] = (CLASS,)  # the heads: the class, or names of values

    @property
    def heads(self) -> Heads:
        gaps = self.sizes.gaps
        way, value = Head("class", self.sizes.ways[1], gaps, fresh=True), Head("value", 1, gaps)
        return {name: way if name == CLASS else value for name in self.asked}

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Classes [T, N] and images of each [T, K+U+Q, N], both without repetition; the classes' turns [T, N]; where
        tasks differ in them, how many ways and shots each has [T]."""
        classes, longest = self.split.rows.shape
        device, sizes = generator.device, self.sizes
        lots = torch.rand(count, classes, generator=generator, device=device)
        if self.groups is not None:
            group = torch.randint(len(self.groups), (count,), generator=generator, device=device)
            lots = lots.masked_fill(~self.groups.to(device)[group], -1)
        ways = lots.topk(sizes.ways[1], dim=1).indices
        lots = torch.rand(*ways.shape, longest, generator=generator, device=device)
        absent = torch.arange(longest, device=device) >= self.split.counts.to(device)[ways, None]
        each = sizes.shots[1] + sizes.unlabelled + sizes.queries
        draw = {"class": ways, "image": lots.masked_fill(absent, -1).topk(each, dim=2).indices.transpose(1, 2)}
        if self.split.by_episode:
            draw["turn"] = torch.randint(4, ways.shape, generator=generator, device=device)
        for name, (fewest, most) in (("ways", sizes.ways), ("shots", sizes.shots)):
            if fewest < most:
                draw[name] = torch.randint(fewest, most + 1, (count,), generator=generator, device=device)
        return draw

    def gather(self, draw: Draw) -> Episode:
        draw = {name: lots.to(self.images.device) for name, lots in draw.items()}
        image, most = draw["image"], self.sizes.shots[1]
        shot, way = (torch.arange(n, device=image.device) for n in image.shape[1:])
        ways = draw["ways"][:, None] if "ways" in draw else self.sizes.ways[1]
        shots = draw["shots"][:, None] if "shots" in draw else most
        labelled = (shot < shots) | (shot >= most + self.sizes.unlabelled)  # shots, and queries
        known = labelled[..., None] & (way < ways)[..., None, :]  # [K+U+Q, N], or [T, K+U+Q, N]
        shot = torch.where(shot < most, shot % shots, shot).expand(image.shape[:2])
        way = (way % ways).expand(image.shape[0], -1)
        image = image.gather(1, shot[..., None].expand_as(image)).gather(2, way[:, None].expand_as(image))
        classes = draw["class"].gather(1, way)[:, None].expand_as(image)
        turns = draw["turn"].gather(1, way)[:, None].expand_as(image) if "turn" in draw else self.split.turns[classes]
        rows = self.split.rows[classes, image]  # [T, K+U+Q, N]
        x = pixels(self.images, rows, turns).flatten(1, 2)
        y = {name: self._targets(name, rows, known).flatten(1, 2) for name in self.asked}
        split = x.shape[1] - self.sizes.queries * rows.shape[2]
        parts = (slice(split), slice(split, None))
        return Episode(*(Batch(x[:, part], {name: target[:, part] for name, target in y.items()}) for part in parts))

    def _targets(self, name: str, rows: Tensor, known: Tensor) -> Tensor:
        """Of the images at `rows` [T, K+U+Q, N], where they are known: ways alike, or values with 1 behind."""
        if name == CLASS:
            return torch.where(known, torch.arange(rows.shape[2], device=rows.device), -100).expand(rows.shape)
        return torch.where(known, self.values[name][rows], torch.nan)[..., None]
