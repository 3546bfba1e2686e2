"""Training from disk beside training from memory: tasks per second on noise in the shape of real images.

    python benchmarks/bigdata.py --gb 10 --drop train.tasks=16 data.queries=15

What follows the options is typed as for `metarun data=folder`. Both run the same loop, by turns; each turn draws other
episodes. The set from memory is a small one of the same image shape, since the large one may not fit there.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from metarun.app import CONF
from metarun.build import Parts, build
from metarun.data.cache import cached
from metarun.data.images import ImageData, Recipe, split_classes
from metarun.data.mapped import PIECE, Mapped
from metarun.device import free_memory, keep_freed_memory
from metarun.run import fresh_state, loop_of

EACH = 600  # images of a class, as in miniImageNet
WARM = 5  # steps before the clock starts
SMALL = 0.1  # GB of the set in memory
DEFAULTS = (
    "data=folder",
    "data.root=.",
    "name=bigdata",
    "parallel=vmap",
    "train.steps=25",
    "schedule=constant",
    "optim.lr=0.0001",
)


@dataclass(frozen=True)
class Synthetic:
    """Noise: images that nothing can compress or guess."""

    gb: float
    size: int
    colour: bool
    ways: int
    shots: int
    queries: int
    resident: bool

    def load(self, device: torch.device) -> ImageData:
        shape = (3 if self.colour else 1, self.size, self.size)
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


class Clock:
    """A tracker that measures from step WARM to the last."""

    def __init__(self, device: torch.device, last: int) -> None:
        self.device, self.last = device, last
        self.at: dict[int, tuple[float, int]] = {}

    def step(self, step: int) -> None:
        if step in (WARM, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.at[step] = time.perf_counter(), _read_from_disk()

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def say(self, text: str) -> None:
        print(text)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["METARUN_CACHE"] = folder
        keep_freed_memory()
        gb = options.gb or min(10.0, shutil.disk_usage(folder).free / 3e9)
        config = _config(options.overrides)
        memory, disk = _parts(config, min(gb, SMALL), True), _parts(config, gb, False)
        images = disk.data.images  # type: ignore[attr-defined]
        _introduce(images, disk, options.drop)
        rates: dict[str, list[float]] = {"memory": [], "disk": []}
        for turn in range(options.repeats):
            for name, parts in (("memory", memory), ("disk", disk)):
                if options.drop:
                    _drop(images)
                rate, read = _rate(config, parts, turn, Path(folder))
                rates[name].append(rate)
                print(f"turn {turn + 1}, from {name}: {rate:.1f} tasks/s, {read / 1e6:.0f} MB read from the device")
        middle = {name: median(values) for name, values in rates.items()}
        print(f"medians: memory {middle['memory']:.1f}, disk {middle['disk']:.1f} tasks/s: ", end="")
        print(f"disk is {middle['disk'] / middle['memory']:.3f} of memory")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, help="size of the set on disk (default: 10, or a third of the free space)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the set is written for the time being (default: the folder for such)")
    parser.add_argument("--drop", action="store_true", help="empty the page cache of the set before each turn")
    parser.add_argument("overrides", nargs="*", help="such as device=cpu train.tasks=16 data.size=84")
    return parser.parse_args()


def _config(overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", [*DEFAULTS, *overrides]), resolve=True)
    return config


def _parts(config: dict[str, Any], gb: float, resident: bool) -> Parts:
    kept = {key: config["data"][key] for key in ("size", "colour", "ways", "shots", "queries")}
    return build({**config, "data": {"_target_": "__main__.Synthetic", "gb": gb, "resident": resident, **kept}}, None)


def _rate(config: dict[str, Any], parts: Parts, seed: int, folder: Path) -> tuple[float, int]:
    """Tasks per second of a short training, and the bytes that came from the disk meanwhile."""
    clock = Clock(parts.device, parts.train.steps)
    score = {"accuracy": {"mean": 0.0, "ci95": 0.0, "tasks": 1}}
    loop = loop_of(config, parts, clock, folder, lambda state: score)
    replace(loop, plan=replace(loop.plan, seed=seed)).run(fresh_state(config, parts))
    (start, read), (end, read_by_then) = clock.at[WARM], clock.at[parts.train.steps]
    return parts.train.tasks * (parts.train.steps - WARM) / (end - start), read_by_then - read


def _introduce(images: Mapped, parts: Parts, drop: bool) -> None:
    size, free = images.array.nbytes / 1e9, free_memory(torch.device("cpu")) / 1e9
    print(f"{len(images.array):,} images of {list(images.shape[1:])} on disk: {size:.2f} GB, on {parts.device}")
    fits = "fits" if size < free else "does not fit"
    print(f"memory free for the page cache: {free:.1f} GB: the set {fits} there")
    if drop:
        print("the page cache of the set is emptied before each turn: what is read comes from the device")
    elif size < free:
        print("so much of it is read from memory: add --drop to measure the device")


def _drop(images: Mapped) -> None:
    images.file.madvise(mmap.MADV_DONTNEED)  # pages that a process has mapped are not dropped
    with images.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_from_disk() -> int:
    """By this process so far; only Linux tells."""
    try:
        found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
