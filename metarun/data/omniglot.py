"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al. 2015)."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from metarun.data.draw.source import ImageData, Within, classes_by_name, split_classes
from metarun.data.images.cache import cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.decode import decode
from metarun.data.images.mapped import Resident
from metarun.errors import UserError, one_line
from metarun.types import COMPUTE_ONLY, Count, Seed, Side

PARTS = {"images_background": 964, "images_evaluation": 659}  # characters of each
DRAWINGS = 20
TRAIN, VAL = 1100, 100  # the other 423 test
VAL_ALPHABETS = 5
SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Omniglot:
    """Strokes are 1, paper is 0. A class is a character; `rotations` make four of each in train and val."""

    root: Annotated[str, COMPUTE_ONLY]
    split: str
    split_seed: Seed
    split_file: str | None
    size: Side
    rotations: bool
    test_rotations: bool
    ways: Count
    shots: Count
    queries: Count
    within: Within
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> ImageData:
        sources = find(Path(self.root).expanduser())
        key = {"size": self.size, "sources": [_listing(source) for source in sources]}
        collection = cached("omniglot", key, lambda: _decode(sources, self.size))
        classes, split = self._split(collection)
        sizes = "/".join(str(len(classes[name])) for name in SPLITS)
        protocol = {"split": f"{split}: {sizes} characters", "rotations": self._rotations()}
        turned = {"train": self.rotations, "val": self.rotations, "test": self.test_rotations}
        return split_classes("omniglot", collection, classes, turned, protocol, self.within).to(device, self.resident)

    def _split(self, collection: Collection) -> tuple[dict[str, list[int]], str]:
        generator = torch.Generator().manual_seed(self.split_seed)
        if self.split == "random":
            order = torch.randperm(len(collection.names), generator=generator).tolist()
            parts = (order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :])
            return dict(zip(SPLITS, parts, strict=True)), f"random (seed {self.split_seed})"
        if self.split == "lake":
            return _lake(collection, generator), f"lake ({VAL_ALPHABETS} alphabets validate, seed {self.split_seed})"
        if self.split == "file":
            return self._listed(collection), f"file ({self.split_file})"
        raise UserError(f"data.split={self.split} is not known. Take random, lake or file.")

    def _listed(self, collection: Collection) -> dict[str, list[int]]:
        if self.split_file is None:
            raise UserError("data.split=file needs data.split_file: a text file of lines `train Greek/character01`.")
        source = f"data.split_file={self.split_file}"
        classes = classes_by_name(_pairs(Path(self.split_file), source), collection.names, source)
        if absent := [split for split in SPLITS if split not in classes]:
            raise UserError(f"{source} has no line for {' and '.join(absent)}. Add some.")
        return classes

    def _rotations(self) -> str:
        if self.rotations and self.test_rotations:
            return "90° as classes in training, validation and test"
        if self.rotations:
            return "90° as classes in training and validation; test upright"
        return "90° as classes in test only" if self.test_rotations else "none"


def _lake(collection: Collection, generator: torch.Generator) -> dict[str, list[int]]:
    """The authors' background alphabets train, but for a few whole ones; their evaluation alphabets test."""
    background = PARTS["images_background"]
    alphabets = sorted(set(collection.groups[:background]))
    drawn = torch.randperm(len(alphabets), generator=generator)[:VAL_ALPHABETS].tolist()
    held_out = {alphabets[a] for a in drawn}
    return {
        "train": [c for c in range(background) if collection.groups[c] not in held_out],
        "val": [c for c in range(background) if collection.groups[c] in held_out],
        "test": list(range(background, len(collection.names))),
    }


def _pairs(path: Path, source: str) -> list[tuple[str, str]]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read ({error}). Mend the path or the file.") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        split, _, name = line.partition("#")[0].strip().partition(" ")
        if split and (split not in SPLITS or not name):
            raise UserError(f"{source}, line {number} is not like `train Greek/character01`: {line.strip()}. Mend it.")
        if split:
            pairs.append((split, name.strip()))
    return pairs


def find(root: Path) -> list[Path]:
    """The two zips or unpacked folders under `root`, downloaded where they are missing."""
    found = _present(root)
    if len(found) < len(PARTS):
        _download(root)
        found = _present(root)
    return found


def _present(root: Path) -> list[Path]:
    """Zips first: they check their own content."""
    for base in (root, root / "omniglot-py"):
        either = [[base / f"{part}.zip", base / part] for part in PARTS]
        found = [next((path for path in pair if path.exists()), None) for pair in either]
        if None not in found:
            return [path for path in found if path is not None]
    return []


def _download(root: Path) -> None:
    log.info("Downloading Omniglot to %s", root)
    try:
        from torchvision.datasets import Omniglot as Original

        for background in (True, False):
            Original(str(root), background=background, download=True)
    except Exception as error:  # no network, no torchvision, one that does not fit torch: one remedy for all
        reason = one_line(error)
        raise UserError(
            f"data.root={root} has no Omniglot, and its download failed ({reason}). Put "
            "images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot there, "
            "or take data=glyphs, which needs no download."
        ) from error


def _listing(source: Path) -> tuple[str, str]:
    """Cheap words for what a source holds: they change when its files do."""
    if source.is_file():
        return source.name, str(source.stat().st_size)
    files = sorted(f"{path.relative_to(source)} {path.stat().st_size}" for path in source.rglob("*.png"))
    return source.name, hashlib.sha256("\n".join(files).encode()).hexdigest()


def _decode(sources: Sequence[Path], size: int) -> Recipe:
    log.info("Decoding Omniglot (once; the cache keeps it)")
    drawings: list[tuple[str, bytes]] = []
    names: list[str] = []
    for source, characters in zip(sources, PARTS.values(), strict=True):
        files = _read(source)
        names += _characters(source, files, characters)
        drawings += sorted(files.items())
    pieces = (255 - piece for piece in decode(drawings, size, colour=False))
    labels = torch.arange(len(names)).repeat_interleave(DRAWINGS)
    groups = tuple(name.partition("/")[0] for name in names)
    return Recipe(pieces, (1, size, size), labels, tuple(names), groups)


def _read(source: Path) -> dict[str, bytes]:
    """Every PNG by `alphabet/character/file`."""
    try:
        if source.is_dir():
            return {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.png")}
        with zipfile.ZipFile(source) as archive:
            inside = [name for name in archive.namelist() if name.startswith(f"{source.stem}/")]
            return {name.partition("/")[2]: archive.read(name) for name in inside if name.lower().endswith(".png")}
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{source} is damaged ({error}). Remove it, and it is downloaded again.") from error


def _characters(source: Path, files: dict[str, Any], expected: int) -> list[str]:
    """The sorted names of the characters, all of them whole."""
    drawings: dict[str, int] = {}
    for file in sorted(files):
        name = file.rpartition("/")[0]
        drawings[name] = drawings.get(name, 0) + 1
    remedy = f"Remove {source.name}, and it is downloaded again."
    for name, count in drawings.items():
        if count != DRAWINGS:
            raise UserError(f"{source}: {name} has {count} drawings instead of {DRAWINGS}. {remedy}")
    if len(drawings) != expected:
        raise UserError(f"{source} has {len(drawings)} characters instead of {expected}. {remedy}")
    return list(drawings)
