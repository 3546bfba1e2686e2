"""Images that stay on disk: what does not fit into memory is read row by row, as it is drawn."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from metarun.engine.device import free_memory
from metarun.engine.progress import watched
from metarun.errors import UserError

PIECE = 256  # images in memory at a time where all of them pass through it
SHARE = 0.5  # of the free memory: the rest is for training

Resident = bool | Literal["auto"]


@dataclass(frozen=True)
class Mapped:
    """A memory-mapped array that stands in for a tensor on `device`. Only the pages of the rows asked for are read."""

    array: np.memmap  # uint8 [M, C, H, W]
    path: Path
    device: torch.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.array.shape)

    @property
    def file(self) -> mmap.mmap:
        return cast(mmap.mmap, self.array.base)

    def split(self, size: int) -> Iterator[Tensor]:
        """Pieces of `size` images, on the CPU."""
        for start in range(0, len(self.array), size):
            self._check()
            yield torch.tensor(self.array[start : start + size])

    def read(self, rows: Tensor) -> Tensor:
        """The images at `rows`, in one dimension, on the device."""
        wanted = rows.flatten().cpu().numpy()
        out = torch.empty(len(wanted), *self.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self._check()
        self._announce(wanted)
        np.take(self.array, wanted, axis=0, out=out.numpy(), mode="clip")  # not "raise", which copies twice
        return out.to(self.device, non_blocking=True)

    def whole(self, device: torch.device) -> Tensor:
        """All images, on `device`."""
        out = torch.empty(self.shape, dtype=torch.uint8, device=device)
        pieces = watched(self.split(PIECE), len(out), "reading images", len)
        for place, piece in zip(out.split(PIECE), pieces, strict=True):
            place.copy_(piece)
        return out

    def _announce(self, rows: np.ndarray) -> None:
        """Has the disk fetch all rows at once. A page fault each would wait for them one by one, and read around."""
        size = self.array[0].nbytes
        for start in (self.array.offset + rows * size).tolist():
            page = start - start % mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _check(self) -> None:
        """A file cut short under the mapping would end the process with SIGBUS."""
        if self.file.size() < self.array.offset + self.array.nbytes:
            raise UserError(f"{self.path} was cut short while it was read. Start again: the images are decoded anew.")


def placed(images: Tensor | Mapped, device: torch.device, resident: Resident) -> Tensor | Mapped:
    """The images on the device where they fit there or have to; else for the device, and still on disk."""
    if isinstance(images, Tensor):  # their cache could not be written
        return images.to(device)
    free, size = free_memory(device), images.array.nbytes
    if resident is True and size > free:
        raise UserError(
            f"data.resident=true: the images take {size / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free. "
            "Leave it at auto: then they stay on disk."
        )
    if resident is True or (resident == "auto" and size <= SHARE * free):
        return images.whole(device)
    return replace(images, device=device)
