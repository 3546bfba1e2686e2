"""MNIST as three tasks on one image: which digit it is, whether that is odd, and how much ink it shows.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proceedings of the IEEE 86(11),
1998.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from metarun.data.draw.rows import Rows
from metarun.data.draw.table import TableData
from metarun.data.images.cache import alone, cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.download import download
from metarun.data.images.mapped import PIECE, Resident
from metarun.data.images.root import root_of
from metarun.errors import UserError, one_line, shown
from metarun.types import COMPUTE_ONLY, Count, Head, Natural, Place, Targets

SIZE = 28
PARTS = {"train": 60_000, "t10k": 10_000}  # images of each
VAL, VAL_SEED = 5_000, 0  # of the training images, the same in every run
HEADS = {"digit": Head("class", 10), "parity": Head("class", 2), "ink": Head("value", 1)}
UNSIGNED_BYTE = 8  # what an IDX file calls them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MnistTasks:
    """Ink is 1, paper is 0. There are no classes to draw: a task is rows that are predicted together."""

    root: Place
    ways: Count
    shots: Natural
    queries: Count
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> TableData:
        files = find(root_of(self.root))
        key = {"files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]}
        collection = cached("mnist_tasks", key, lambda: _decode(files))
        order = torch.randperm(PARTS["train"], generator=torch.Generator().manual_seed(VAL_SEED))
        parts = {"train": order[VAL:].sort().values, "val": order[:VAL].sort().values}
        parts["test"] = torch.arange(PARTS["train"], sum(PARTS.values()))
        targets = _targets(collection, parts["train"])
        splits = {name: _rows(targets, chosen) for name, chosen in parts.items()}
        sizes = "/".join(str(len(chosen)) for chosen in parts.values())
        split = f"the authors', {VAL} of their training images validate (seed {VAL_SEED}): {sizes} images"
        protocol = {"split": split, "rotations": "none"}
        data = TableData("mnist_tasks", collection.images, splits, collection.fingerprint, protocol, "digit/accuracy")
        return data.to(device, self.resident)


def _targets(collection: Collection, train: Tensor) -> Targets:
    """Of all images. Ink is the mean of an image's pixels, shifted and scaled to mean 0 and variance 1 in training."""
    digit = collection.labels
    ink = torch.cat([piece.flatten(1).sum(1) for piece in collection.images.split(PIECE)]).double()
    ink = (ink - ink[train].mean()) / ink[train].std(correction=0)
    return {"digit": digit, "parity": digit % 2, "ink": ink.float()[:, None]}


def _rows(targets: Targets, chosen: Tensor) -> Rows:
    return Rows(chosen, torch.zeros_like(chosen), {name: target[chosen] for name, target in targets.items()}, HEADS)


def find(root: Path) -> list[Path]:
    """The four files in root/MNIST/raw, plain or compressed, downloaded where one is missing."""
    if found := _present(root):
        return found
    with alone("mnist", "downloads MNIST"):
        if found := _present(root):
            return found
        _download(root)
    return _present(root)


def _present(root: Path) -> list[Path]:
    """Images and labels of training, images and labels of test; none if one is missing."""
    names = [f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
    either = [[root / "MNIST" / "raw" / f"{name}{ending}" for ending in ("", ".gz")] for name in names]
    found = [next((path for path in pair if os.path.isfile(path)), None) for pair in either]
    return [] if None in found else [path for path in found if path is not None]


def _download(root: Path) -> None:
    log.info("Downloading MNIST to %s", shown(root))
    try:
        from torchvision.datasets import MNIST

        def fetch(place: str) -> None:
            MNIST(place, download=True)

        download(root, "MNIST/raw/*", fetch)
    except Exception as error:  # no network, no torchvision, one that does not fit torch: one remedy for all
        raise UserError(
            f"data.root={shown(root)} has no MNIST, and its download failed ({one_line(error)}). Put the authors' four "
            f"files (train-images-idx3-ubyte.gz, ...) into {shown(root / 'MNIST' / 'raw')}."
        ) from error


def _decode(files: list[Path]) -> Recipe:
    log.info("Decoding MNIST (once; the cache keeps it)")
    images, labels = [], []
    for (x, y), rows in zip((files[:2], files[2:]), PARTS.values(), strict=True):
        images.append(_read(x, (rows, SIZE, SIZE))[:, None])
        labels.append(_read(y, (rows,)).long())
    names = tuple(str(digit) for digit in range(HEADS["digit"].size))
    return Recipe(images, (1, SIZE, SIZE), torch.cat(labels), names, ("all",) * len(names))


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
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
            f"{shown(path)} does not hold {wanted} bytes as MNIST's. Remove it, and it is downloaded again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(head)).reshape(shape).copy())
