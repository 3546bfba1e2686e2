"""Training from disk beside training from memory: MAML on colour images of 84 x 84 pixels, 5 ways, 15 queries.

The set from memory is a small one of the same image shape, since the large one may not fit there.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks import command
from benchmarks.measure import in_turns
from benchmarks.session import Session, Silent
from benchmarks.workloads import MAML
from metarun.data.draw.source import ImageData, split_classes
from metarun.data.images.cache import cached
from metarun.data.images.collection import Recipe
from metarun.data.images.mapped import PIECE, Mapped
from metarun.engine.device import free_memory

EACH = 600  # images of a class, as in miniImageNet
SMALL = 0.1  # GB of the set in memory
WORK = f"data=synthetic backbone=conv4 {MAML} train.tasks=16 data.queries=15".split()


@dataclass(frozen=True)
class Synthetic:
    """Noise: images that nothing can compress or guess."""

    gb: float
    size: int
    channels: int
    ways: int
    shots: int
    queries: int
    resident: bool

    def load(self, device: torch.device) -> ImageData:
        shape = (self.channels, self.size, self.size)
        classes = max(3 * self.ways, round(self.gb * 1e9 / EACH / math.prod(shape)))
        labels = torch.arange(classes).repeat_interleave(EACH)
        names = tuple(f"c{c}" for c in range(classes))

        def pieces() -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(0)
            for part in labels.split(PIECE):
                yield torch.randint(0, 256, (len(part), *shape), generator=generator, dtype=torch.uint8)

        key = {"shape": shape, "classes": classes}
        collection = cached("synthetic", key, lambda: Recipe(pieces(), shape, labels, names, names))
        test, val = range(self.ways), range(self.ways, 2 * self.ways)
        splits = {"train": range(2 * self.ways, classes), "val": val, "test": test}
        return split_classes("synthetic", collection, splits, dict.fromkeys(splits, False), {}).to(
            device, self.resident
        )


def main(argv: list[str]) -> None:
    parser = command.timing(command.options("bigdata", __doc__))
    parser.add_argument("--gb", type=float, help="size of the set on disk (default: 10, or a third of the free space)")
    parser.add_argument("--folder", help="where the set is written for the time being (default: the folder for such)")
    parser.add_argument("--drop", action="store_true", help="empty the page cache of the set before each turn")
    parser.add_argument("overrides", nargs="*", help="such as train.tasks=4 data.size=224")
    args = parser.parse_args(argv)
    with TemporaryDirectory(dir=args.folder) as folder:
        os.environ["METARUN_CACHE"] = folder
        facts = command.begin(args)
        gb = args.gb or min(10.0, shutil.disk_usage(folder).free / 3e9)
        command.save(args, facts, compared(gb, args))


def compared(gb: float, args: argparse.Namespace) -> dict[str, Any]:
    """Tasks per second from memory and from disk, by turns."""
    sessions = {name: start(gb, name, args) for name in ("memory", "disk")}
    disk = sessions["disk"].parts
    images: Mapped = disk.data.images  # type: ignore[attr-defined]
    size, free = images.array.nbytes, free_memory(torch.device("cpu"))
    print(f"{len(images.array):,} images of {list(images.shape[1:])} on disk: {size / 1e9:.2f} GB, on {disk.device}")
    print(f"memory free for the page cache: {free / 1e9:.1f} GB. ", end="")
    print("It is emptied before each turn" if args.drop else "--drop would empty it before each turn", flush=True)
    before = partial(drop, images) if args.drop else lambda: None
    read = read_from_disk()
    pieces = {name: session.steps for name, session in sessions.items()}
    taken = in_turns(pieces, args.repeats, args.seconds, disk.device, before)
    read = read_from_disk() - read
    rates = {name: [sessions[name].tasks / s for s in found] for name, found in taken.items()}
    middle = {name: median(found) for name, found in rates.items()}
    ratio = middle["disk"] / middle["memory"]
    print(f"medians: memory {middle['memory']:.1f}, disk {middle['disk']:.1f} tasks/s: {ratio:.3f} of it")
    print(f"{read / 1e6:,.0f} MB were read from the device")
    return {"bytes": size, "free_memory": free, "read": read, "tasks_per_s": rates, "disk_to_memory": ratio}


def start(gb: float, name: str, args: argparse.Namespace) -> Session:
    held = [f"data.gb={gb}", "data.resident=false"] if name == "disk" else [f"data.gb={min(gb, SMALL)}"]
    return Session.start([*WORK, *args.overrides, *held, f"device={args.device}", "parallel=vmap"], Silent())


def drop(images: Mapped) -> None:
    images.file.madvise(mmap.MADV_DONTNEED)  # pages that a process has mapped are not dropped
    with images.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_from_disk() -> int:
    """Bytes by this process so far; only Linux tells."""
    try:
        found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else 0


if __name__ == "__main__":
    command.answering(main)
