"""Fresh N-way K-shot tasks from the classes of a split, drawn by index arithmetic on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.draw.split import ClassSplit, pixels
from metarun.data.images.mapped import Mapped
from metarun.types import Batch, Draw, Episode, Head, Heads


@dataclass(frozen=True)
class EpisodeSampler:
    """Rows of a support or query set go shot by shot: each N consecutive rows hold one image of every way.

    With `groups`, the ways of a task come from one of them, drawn uniformly for each task.
    """

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    split: ClassSplit
    ways: int
    shots: int
    queries: int
    fingerprint: str
    groups: Tensor | None = None  # bool [G, classes]: the members of each, `ways` or more

    @property
    def heads(self) -> Heads:
        return {"class": Head("class", self.ways)}

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Classes [T, N] and K+Q images of each [T, K+Q, N], both without repetition; and the classes' turns [T, N]."""
        classes, longest = self.split.rows.shape
        device = generator.device
        lots = torch.rand(count, classes, generator=generator, device=device)
        if self.groups is not None:
            group = torch.randint(len(self.groups), (count,), generator=generator, device=device)
            lots = lots.masked_fill(~self.groups.to(device)[group], -1)
        ways = lots.topk(self.ways, dim=1).indices
        lots = torch.rand(count, self.ways, longest, generator=generator, device=device)
        absent = torch.arange(longest, device=device) >= self.split.counts.to(device)[ways, None]
        drawn = lots.masked_fill(absent, -1).topk(self.shots + self.queries, dim=2).indices
        draw = {"class": ways, "image": drawn.transpose(1, 2)}
        if self.split.by_episode:
            draw["turn"] = torch.randint(4, ways.shape, generator=generator, device=device)
        return draw

    def gather(self, draw: Draw) -> Episode:
        ways = draw["class"].to(self.images.device)[:, None, :].expand_as(draw["image"])  # [T, K+Q, N]
        rows = self.split.rows[ways, draw["image"].to(self.images.device)]
        turns = draw["turn"].to(rows.device)[:, None, :].expand_as(rows) if "turn" in draw else self.split.turns[ways]
        x = pixels(self.images, rows, turns)
        y = torch.arange(self.ways, device=x.device).expand(x.shape[:3])
        return Episode(
            *(
                Batch(part_x.flatten(1, 2), {"class": part_y.flatten(1, 2)})
                for part_x, part_y in (
                    (x[:, : self.shots], y[:, : self.shots]),
                    (x[:, self.shots :], y[:, self.shots :]),
                )
            )
        )
