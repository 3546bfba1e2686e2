"""MNIST's four files, and those of data sets that have its form: found, downloaded, read, and split.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proceedings of the IEEE 86(11),
1998. Xiao, Rasul, Vollgraf: Fashion-MNIST. arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarun.data.images.cache import alone, cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.download import download
from metarun.errors import UserError, one_line, shown

SIZE = 28
PARTS = {"train": 60_000, "t10k": 10_000}  # images of each
VAL, VAL_SEED = 5_000, 0  # of the training images, the same in every run
CLASSES = 10
UNSIGNED_BYTE = 8  # what an IDX file calls them

Source = Literal["mnist", "fashion"]
ORIGINALS: dict[Source, str] = {"mnist": "MNIST", "fashion": "FashionMNIST"}  # torchvision's class, and its folder

log = logging.getLogger(__name__)


def digits(source: Source, root: Path) -> Collection:
    """All images, those of training first, each with its digit (or its garment's number)."""
    original = ORIGINALS[source]
    files = find(original, root)
    key = {"files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]}
    return cached(source, key, lambda: _decode(original, files))


def dealt() -> dict[str, Tensor]:
    """Which images train, validate and test."""
    order = torch.randperm(PARTS["train"], generator=torch.Generator().manual_seed(VAL_SEED))
    test = torch.arange(PARTS["train"], sum(PARTS.values()))
    return {"train": order[VAL:].sort().values, "val": order[:VAL].sort().values, "test": test}


def split_in_words() -> str:
    """For a reader of results."""
    sizes = (PARTS["train"] - VAL, VAL, PARTS["t10k"])
    return (
        f"the authors', {VAL} of their training images validate (seed {VAL_SEED}): {'/'.join(map(str, sizes))} images"
    )


def find(original: str, root: Path) -> list[Path]:
    """The four files in root/MNIST/raw or in root itself, plain or compressed, downloaded where one is missing."""
    if found := _present(original, root):
        return found
    with alone(original.lower(), f"downloads {original}"):
        if found := _present(original, root):
            return found
        _download(original, root)
    return _present(original, root)


def _present(original: str, root: Path) -> list[Path]:
    """Images and labels of training, images and labels of test; none if one is missing."""
    names = [f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
    for folder in (root / original / "raw", root):
        either = [[folder / f"{name}{ending}" for ending in ("", ".gz")] for name in names]
        found = [next((path for path in pair if os.path.isfile(path)), None) for pair in either]
        if None not in found:
            return [path for path in found if path is not None]
    return []


def _download(original: str, root: Path) -> None:
    log.info("Downloading %s to %s", original, shown(root))
    try:
        from torchvision import datasets

        def fetch(place: str) -> None:
            getattr(datasets, original)(place, download=True)

        download(root, f"{original}/raw/*", fetch)
    except Exception as error:  # no network, no torchvision, one that does not fit torch: one remedy for all
        raise UserError(
            f"data.root={shown(root)} has no {original}, and its download failed ({one_line(error)}). Put the authors' "
            f"four files (train-images-idx3-ubyte.gz, ...) into {shown(root / original / 'raw')}."
        ) from error


def _decode(original: str, files: list[Path]) -> Recipe:
    log.info("Decoding %s (once; the cache keeps it)", original)
    images, labels = [], []
    for (x, y), rows in zip((files[:2], files[2:]), PARTS.values(), strict=True):
        images.append(_read(original, x, (rows, SIZE, SIZE))[:, None])
        labels.append(_read(original, y, (rows,)).long())
    names = tuple(str(digit) for digit in range(CLASSES))
    return Recipe(images, (1, SIZE, SIZE), torch.cat(labels), names, ("all",) * len(names))


def _read(original: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    """An IDX file of bytes: two zeros, a type, how many dimensions, the dimensions in four bytes each, the content."""
    head = bytes([0, 0, UNSIGNED_BYTE, len(shape)]) + np.array(shape, ">i4").tobytes()
    length = len(head) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(length + 1)  # no more, whatever it unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{shown(path)} is damaged ({one_line(error)}). Remove it, and it is downloaded again."
        ) from error
    if not content.startswith(head) or len(content) != length:
        wanted = " x ".join(map(str, shape))
        raise UserError(
            f"{shown(path)} does not hold {wanted} bytes as {original}'s. Remove it, and it is downloaded again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(head)).reshape(shape).copy())
