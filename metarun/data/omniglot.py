"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al. 2015)."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import torch

from metarun.data.draw.source import ImageData, Within, classes_by_name, split_classes
from metarun.data.draw.split import Turning, in_words
from metarun.data.images.cache import alone, cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.decode import decode
from metarun.data.images.download import download
from metarun.data.images.mapped import Resident
from metarun.data.images.root import root_of
from metarun.errors import UserError, one_line, shown
from metarun.types import COMPUTE_ONLY, PLACE, Count, Natural, Place, Seed, Side, Span

PARTS = {"images_background": 964, "images_evaluation": 659}  # characters of each
DRAWINGS = 20
TRAIN, VAL = 1100, 100  # the other 423 test
VAL_ALPHABETS = 5
UNPACKED = 2**26  # bytes: a part of the authors' has 5 MB
BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # ways to compress of which no more is unpacked than is asked for
SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Omniglot:
    """Strokes are 1, paper is 0. A class is a character; with `rotations: true`, four are, in train and val."""

    root: Place
    split: str
    split_seed: Seed
    split_file: Annotated[str | None, PLACE]
    size: Side
    rotations: Turning
    test_rotations: Turning
    ways: Span
    shots: Span
    queries: Count
    unlabelled: Natural
    within: Within
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> ImageData:
        sources = find(root_of(self.root))
        key = {"size": self.size, "sources": [_listing(source) for source in sources]}
        collection = cached("omniglot", key, lambda: _decode(sources, self.size))
        classes, split = self._split(collection)
        sizes = "/".join(str(len(classes[name])) for name in SPLITS)
        turned = {"train": self.rotations, "val": self.rotations, "test": self.test_rotations}
        protocol = {"split": f"{split}: {sizes} characters", "rotations": in_words(turned)}
        data = split_classes("omniglot", collection, classes, turned, protocol, self.within, self.unlabelled)
        return data.to(device, self.resident)

    def _split(self, collection: Collection) -> tuple[dict[str, list[int]], str]:
        generator = torch.Generator().manual_seed(self.split_seed)
        if self.split == "random":
            order = torch.randperm(len(collection.names), generator=generator).tolist()
            parts = (order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :])
            return dict(zip(SPLITS, parts, strict=True)), f"random (seed {self.split_seed})"
        if self.split == "lake":
            return _lake(collection, generator), f"lake ({VAL_ALPHABETS} alphabets validate, seed {self.split_seed})"
        if self.split == "file":
            return self._listed(collection), f"file ({shown(Path(str(self.split_file)).name)})"
        raise UserError(f"data.split={self.split} is not known. Take random, lake or file.")

    def _listed(self, collection: Collection) -> dict[str, list[int]]:
        if self.split_file is None:
            raise UserError("data.split=file needs data.split_file: a text file of lines `train Greek/character01`.")
        source = f"data.split_file={shown(self.split_file)}"
        classes = classes_by_name(_pairs(os.path.expanduser(self.split_file), source), collection.names, source)
        if absent := [split for split in SPLITS if split not in classes]:
            raise UserError(f"{source} has no line for {' and '.join(absent)}. Add some.")
        return classes


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


def _pairs(path: str, source: str) -> list[tuple[str, str]]:
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("there is no such file")
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # Windows puts a mark before the first letter
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read ({one_line(error)}). Mend the path or the file.") from error
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
    if found := _present(root):
        return found
    with alone("omniglot", "downloads Omniglot"):
        if found := _present(root):
            return found
        _download(root)
    return _present(root)


def _present(root: Path) -> list[Path]:
    """Zips first: they check their own content."""
    for base in (root, root / "omniglot-py"):
        zips = [base / f"{part}.zip" for part in PARTS]
        either = [path if os.path.isfile(path) else path.with_suffix("") for path in zips]
        if all(path in zips or os.path.isdir(path) for path in either):
            return either
    return []


def _download(root: Path) -> None:
    log.info("Downloading Omniglot to %s", shown(root))
    try:
        from torchvision.datasets import Omniglot as Original

        def fetch(place: str) -> None:
            for background in (True, False):
                Original(place, background=background, download=True)

        download(root, "omniglot-py/*.zip", fetch)
    except Exception as error:  # no network, no torchvision, one that does not fit torch: one remedy for all
        reason = one_line(error)
        raise UserError(
            f"data.root={shown(root)} has no Omniglot, and its download failed ({reason}). Put "
            "images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot there, "
            "or take data=glyphs, which needs no download."
        ) from error


def _listing(source: Path) -> tuple[str, str]:
    """Cheap words for what a source holds: they change when its files do."""
    if source.is_file():
        return source.name, str(source.stat().st_size)
    try:
        files = sorted(f"{path.relative_to(source)} {path.stat().st_size}" for path in source.rglob("*.png"))
    except OSError as error:
        raise _damaged(source, error) from error
    return source.name, hashlib.sha256("\n".join(files).encode("utf-8", "surrogateescape")).hexdigest()


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
    """Every PNG by `alphabet/character/file`; what unpacks to far more than the authors' drawings is not read on."""
    files: dict[str, bytes] = {}
    left = UNPACKED
    try:
        for name, opened in _pngs(source):
            with opened as file:
                files[name] = file.read(left + 1)
            left -= len(files[name])
            if left < 0:
                raise ValueError(f"it unpacks to more than {UNPACKED >> 20} MB")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(source, error) from error
    return files


def _pngs(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if source.is_dir():
        for path in source.rglob("*.png"):
            if not path.is_file():
                raise ValueError(f"{shown(path)} is no regular file")
            yield path.relative_to(source).as_posix(), path.open("rb")
        return
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith(f"{source.stem}/") and entry.filename.lower().endswith(".png"):
                if entry.compress_type not in BOUNDED:
                    raise NotImplementedError("it is compressed by another method than the authors'")
                yield entry.filename.partition("/")[2], archive.open(entry)


def _damaged(source: Path, error: Exception) -> UserError:
    return UserError(f"{shown(source)} is damaged ({one_line(error)}). Remove it, and it is downloaded again.")


def _characters(source: Path, files: dict[str, Any], expected: int) -> list[str]:
    """The sorted names of the characters, all of them whole."""
    drawings: dict[str, int] = {}
    for file in sorted(files):
        name = file.rpartition("/")[0]
        drawings[name] = drawings.get(name, 0) + 1
    remedy = f"Remove {source.name}, and it is downloaded again."
    for name, count in drawings.items():
        if count != DRAWINGS:
            raise UserError(f"{shown(source)}: {shown(name)} has {count} drawings instead of {DRAWINGS}. {remedy}")
    if len(drawings) != expected:
        raise UserError(f"{shown(source)} has {len(drawings)} characters instead of {expected}. {remedy}")
    return list(drawings)
