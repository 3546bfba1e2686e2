"""Fresh N-way K-shot tasks from the classes of a split, drawn by index arithmetic on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metarun.data.mapped import Mapped
from metarun.types import Batch, Draw, Episode, Head, Heads

if TYPE_CHECKING:
    from metarun.data.images import ClassSplit


@dataclass(frozen=True)
class EpisodeSampler:
    """Rows of a support or query set go shot by shot: each N consecutive rows hold one image of every way."""

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    split: ClassSplit
    ways: int
    shots: int
    queries: int
    fingerprint: str

    @property
    def heads(self) -> Heads:
        return {"class": Head("class", self.ways)}

    @property
    def from_disk(self) -> bool:
        return isinstance(self.images, Mapped)

    def draw(self, tasks: int, generator: torch.Generator) -> Draw:
        """Classes [T, N] without repetition, and K+Q images of each [T, K+Q, N] without repetition."""
        classes, longest = self.split.rows.shape
        device = generator.device
        lots = torch.rand(tasks, classes, generator=generator, device=device)
        ways = lots.topk(self.ways, dim=1).indices
        lots = torch.rand(tasks, self.ways, longest, generator=generator, device=device)
        absent = torch.arange(longest, device=device) >= self.split.counts.to(device)[ways, None]
        drawn = lots.masked_fill(absent, -1).topk(self.shots + self.queries, dim=2).indices
        return {"class": ways, "image": drawn.transpose(1, 2)}

    def gather(self, draw: Draw) -> Episode:
        ways = draw["class"].to(self.images.device)[:, None, :].expand_as(draw["image"])  # [T, K+Q, N]
        rows = self.split.rows[ways, draw["image"].to(self.images.device)]
        x = pixels(self.images, rows, self.split.turns[ways])
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


def pixels(images: Tensor | Mapped, rows: Tensor, turns: Tensor) -> Tensor:
    """The images at `rows`, each turned by 90° `turns` times, as floats in [0, 1]."""
    chosen = images.read(rows).unflatten(0, rows.shape) if isinstance(images, Mapped) else images[rows]
    if chosen.shape[-1] == chosen.shape[-2]:
        turns = turns[..., None, None, None]
        chosen = torch.where(turns >= 2, chosen.flip(-2, -1), chosen)
        chosen = torch.where(turns % 2 == 1, chosen.rot90(1, (-2, -1)), chosen)
    return chosen.float().div_(255)
