"""Images decoded once, kept as one uint8 array in memory or on disk, split by class."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metarun.data.episodes import EpisodeSampler
from metarun.data.mapped import PIECE, Mapped, Resident, placed
from metarun.data.tasks import TaskSampler
from metarun.errors import UserError

File = tuple[str, Path | bytes]  # a name for people, and where it is or what is in it


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
        for piece in images.split(PIECE):
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


@dataclass(frozen=True)
class ClassSplit:
    """The classes of one split. A class turned by 90° is a class of its own."""

    rows: Tensor  # int64 [classes, longest]: a class's images, padded with 0
    counts: Tensor  # int64 [classes]
    turns: Tensor  # int64 [classes]: quarter turns
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def to(self, device: torch.device) -> ClassSplit:
        return replace(self, rows=self.rows.to(device), counts=self.counts.to(device), turns=self.turns.to(device))


@dataclass(frozen=True)
class ImageData:
    name: str
    images: Tensor | Mapped  # uint8 [M, C, H, W]
    splits: Mapping[str, ClassSplit]
    fingerprint: str
    protocol: dict[str, Any]  # what a reader of results must know: split, rotations

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device, resident: Resident) -> ImageData:
        moved = {name: split.to(device) for name, split in self.splits.items()}
        return replace(self, images=placed(self.images, device, resident), splits=moved)

    def episodes(self, split: str, ways: int, shots: int, queries: int, section: str = "data") -> EpisodeSampler:
        """Tasks of one split; `section` is the part of the config where a number that cannot be is mended."""
        for key, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise UserError(f"data.{key}={value} must be at least 1. Raise it.")
        chosen = self.splits[split]
        classes, needed = len(chosen.counts), shots + queries
        if ways > classes:
            raise UserError(
                f"data.ways={ways} is more than the {classes} classes of {self.name}'s {split} split. Lower it."
            )
        fewest = int(chosen.counts.min())
        if needed > fewest:
            uneven = fewest < int(chosen.counts.max())
            owner = f"{self.name}'s class {chosen.names[int(chosen.counts.argmin())]}" if uneven else self.name
            raise UserError(
                f"{section}.shots={shots} with {section}.queries={queries} needs {needed} images per class; "
                f"{owner} has {fewest}. Lower one of them."
            )
        return EpisodeSampler(self.images, chosen, ways, shots, queries, self._fingerprint(chosen))

    def _fingerprint(self, split: ClassSplit) -> str:
        """Of the content and of what a draw's indices mean: another split seed is another set of episodes."""
        content = hashlib.sha256(self.fingerprint.encode())
        for part in (split.rows, split.counts, split.turns):
            content.update(part.cpu().contiguous().numpy().data)
        return f"sha256:{content.hexdigest()}"

    def tasks(self, by: str, shots: int) -> TaskSampler:
        return TaskSampler.build(self.images, self.splits["train"], by, shots, self.fingerprint)


def decode(files: Sequence[File], size: int, colour: bool) -> Iterator[Tensor]:
    """Named image files as uint8 [m, C, size, size], piece by piece: the middle square of each, resized."""
    if size < 1:
        raise UserError(f"data.size={size} must be at least 1. Raise it.")
    return (_decode_piece(files[start : start + PIECE], size, colour) for start in range(0, len(files), PIECE))


def _decode_piece(files: Sequence[File], size: int, colour: bool) -> Tensor:
    images = torch.empty(len(files), 3 if colour else 1, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        try:
            for row, image in enumerate(pool.map(partial(_decode_one, size=size, colour=colour), files)):
                images[row] = image
        except BaseException:  # Ctrl-C, or a damaged image: nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _decode_one(file: File, size: int, colour: bool) -> Tensor:
    name, content = file
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.draft(None, (4 * size, 4 * size))  # a large JPEG is decoded small: many times faster
            upright = _opaque(ImageOps.exif_transpose(image)).convert("RGB" if colour else "L")
            pixels = np.array(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name} cannot be read as an image ({reason}). Replace or remove it.") from error
    return torch.from_numpy(pixels).view(size, size, -1).permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it is transparent, and with 8 bits: `convert` would make most of 16 bits white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def classes_by_name(listed: Sequence[tuple[str, str]], names: Sequence[str], source: object) -> dict[str, list[int]]:
    """The classes that a user's lists deal to splits, as (split, class) pairs; `source` names the lists."""
    index = {name: c for c, name in enumerate(names)}
    classes: dict[str, list[int]] = {}
    seen: set[str] = set()
    for split, name in listed:
        if name not in index:
            raise UserError(f"{source} puts the class {name} into {split}, but there is no such class. Mend it.")
        if name in seen:
            raise UserError(f"{source} names the class {name} twice; splits share no class. Remove one.")
        seen.add(name)
        classes.setdefault(split, []).append(index[name])
    return classes


def split_classes(
    name: str,
    collection: Collection,
    classes: Mapping[str, Sequence[int]],
    turned: Mapping[str, bool],
    protocol: dict[str, Any],
) -> ImageData:
    """Deals a collection's classes to splits; where `turned`, each counts four times, by quarter turns."""
    splits = {
        split: _class_split(collection, torch.tensor(list(chosen)), 4 if turned[split] else 1)
        for split, chosen in classes.items()
    }
    return ImageData(name, collection.images, splits, collection.fingerprint, protocol)


def _class_split(collection: Collection, chosen: Tensor, turns: int) -> ClassSplit:
    order = collection.labels.argsort(stable=True)
    counts = torch.bincount(collection.labels, minlength=len(collection.names))
    starts = counts.cumsum(0) - counts
    longest = int(counts[chosen].max())
    place = torch.arange(longest)
    padded = torch.where(place < counts[chosen, None], starts[chosen, None] + place, 0)
    return ClassSplit(
        rows=order[padded].repeat(turns, 1),
        counts=counts[chosen].repeat(turns),
        turns=torch.arange(turns).repeat_interleave(len(chosen)),
        names=tuple(collection.names[c] for c in chosen.tolist()) * turns,
        groups=tuple(collection.groups[c] for c in chosen.tolist()) * turns,
    )
