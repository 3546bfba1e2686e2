"""Images decoded once, kept as one uint8 array in memory or on disk, split by class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.images.mapped import PIECE, Mapped
from metarun.engine.progress import watched


@dataclass(frozen=True)
class Collection:
    """Every image of a data set with its class; a class has a name and a group (its alphabet, say)."""

    images: Tensor | Mapped  # uint8 [M, C, H, W]
    labels: Tensor  # int64 [M]: an index into names
    names: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: str  # of the content: it goes into the hash of test episodes

    @staticmethod
    def of(images: Tensor | Mapped, labels: Tensor, names: tuple[str, ...], groups: tuple[str, ...]) -> Collection:
        """A collection with the fingerprint of its content: pixels, labels and class names."""
        content = hashlib.sha256(json.dumps(["torch.uint8", list(images.shape), labels.tolist(), names]).encode())
        for piece in watched(images.split(PIECE), images.shape[0], "checking images", len):
            content.update(piece.contiguous().numpy().data)
        return Collection(images, labels, names, groups, f"sha256:{content.hexdigest()}")


@dataclass(frozen=True)
class Recipe:
    """How to make a collection. Its images come in pieces, so that all of them need never be in memory."""

    pieces: Iterable[Tensor]  # uint8 [m, C, H, W] each, M images together
    shape: tuple[int, int, int]  # C, H, W
    labels: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def in_memory(self) -> Collection:
        return Collection.of(torch.cat([*self.pieces]), self.labels, self.names, self.groups)
