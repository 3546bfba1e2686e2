"""Images without content, of any size: arithmetic costs the same on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarun.data.draw.source import ImageData, split_classes
from metarun.data.images.collection import Collection

GROUPS = 4


@dataclass(frozen=True)
class Noise:
    size: int
    channels: int
    classes: int
    drawings: int
    ways: int
    shots: int
    queries: int

    def load(self, device: torch.device) -> ImageData:
        shape = (self.classes * self.drawings, self.channels, self.size, self.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(self.classes).repeat_interleave(self.drawings)
        names = tuple(f"group{c % GROUPS}/class{c}" for c in range(self.classes))
        collection = Collection.of(images, labels, names, tuple(name.partition("/")[0] for name in names))
        every = {split: range(self.classes) for split in ("train", "val", "test")}
        protocol = {"split": "none: the same noise in all", "rotations": "none"}
        return split_classes("noise", collection, every, dict.fromkeys(every, False), protocol).to(
            device, resident=True
        )
