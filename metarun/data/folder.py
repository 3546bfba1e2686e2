"""Your own images: a folder with one folder of images per class, dealt to train, val and test by class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from metarun.data.draw.source import ImageData, Within, classes_by_name, split_classes
from metarun.data.images.cache import cached
from metarun.data.images.classes import Classes, Tree, hidden
from metarun.data.images.collection import Recipe
from metarun.data.images.decode import decode
from metarun.data.images.mapped import Resident
from metarun.data.images.root import root_of
from metarun.errors import UserError, one_line, shown
from metarun.types import COMPUTE_ONLY, Count, Natural, Place, Seed, Side, Span, ends

SPLITS = ("train", "val", "test")
AUTO = (0.64, 0.16, 0.2)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """`root` holds class folders; or train/ val/ test/ of them; or train.txt val.txt test.txt naming them.

    Without a val of its own, some of train's classes validate. With `split: auto`, val and test get
    at least `ways` classes each. Where `splits` asks for test alone, `auto` tests on all classes.
    """

    root: Place
    size: Side
    colour: bool
    split: str | Sequence[float]
    split_seed: Seed
    splits: Sequence[Literal["train", "val", "test"]]
    ways: Span
    shots: Span
    queries: Count
    unlabelled: Natural
    within: Within
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> ImageData:
        root = root_of(self.root)
        if not os.path.isdir(root):
            what = "is no folder" if os.path.lexists(root) else "does not exist"
            raise UserError(f"data.root={shown(root)} {what}. Give a folder with one folder of images per class.")
        tree = Tree.of(root)
        files, listed, layout = _layout(root, tree, self.splits)
        if tree.skipped:
            log.warning("data.root=%s: %s", shown(root), tree.left_out())
        if listed is None and self.split == "auto" and "train" not in self.splits:
            classes, split = {"test": [*range(len(files))]}, "all"
        elif listed is None:
            classes, split = self._deal(range(len(files)), self._shares()), f"random (seed {self.split_seed})"
        else:
            classes, split = self._listed(classes_by_name(listed, tuple(files), layout), layout)
        sizes = "/".join(str(len(classes[name])) for name in SPLITS if name in classes)
        protocol = {"split": f"{split}: {sizes} classes", "rotations": "none"}
        key = {"size": self.size, "colour": self.colour, "files": _listing(root, files)}
        collection = cached("folder", key, lambda: self._decode(root, files))
        turned = dict.fromkeys(SPLITS, False)
        data = split_classes("folder", collection, classes, turned, protocol, self.within, self.unlabelled)
        return replace(data, remedy="Lower one of them, or add images").to(device, self.resident)

    def _shares(self) -> tuple[float, float, float]:
        if self.split == "auto":
            return AUTO
        if (
            isinstance(self.split, str)
            or len(self.split) != 3
            or min(self.split) <= 0
            or abs(sum(self.split) - 1) > 1e-6
        ):
            raise UserError(
                f"data.split={self.split} is neither auto nor three shares like [0.6,0.2,0.2] that sum to 1."
            )
        return (self.split[0], self.split[1], self.split[2])

    def _listed(self, classes: dict[str, list[int]], layout: str) -> tuple[dict[str, list[int]], str]:
        if "val" in classes or "train" not in classes:
            return classes, layout
        train, val, _ = self._shares()
        dealt = self._deal(classes["train"], (train / (train + val), val / (train + val), 0.0))
        return dealt | {"test": classes["test"]}, f"{layout}, val out of train (seed {self.split_seed})"

    def _deal(self, classes: Sequence[int], shares: tuple[float, float, float]) -> dict[str, list[int]]:
        """Shuffled by seed; a split with a share gets at least a class, with `auto` enough for an episode."""
        least = ends(self.ways)[1] if self.split == "auto" else 1
        val, test = (max(least, round(share * len(classes))) if share else 0 for share in shares[1:])
        train = len(classes) - val - test
        if train < least:
            splits = sum(share > 0 for share in shares)
            raise UserError(
                f"data.ways={self.ways} needs {splits * least} classes, {least} for each of {splits} splits; "
                f"data.root={shown(self.root)} has {len(classes)} to deal. Lower data.ways or add classes."
            )
        generator = torch.Generator().manual_seed(self.split_seed)
        order = [classes[i] for i in torch.randperm(len(classes), generator=generator).tolist()]
        return {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}

    def _decode(self, root: Path, files: Classes) -> Recipe:
        log.info("Decoding %s (once; the cache keeps it)", shown(root))
        sources = [(str(path), path) for paths in files.values() for path in paths]
        counts = torch.tensor([len(paths) for paths in files.values()])
        labels = torch.arange(len(files)).repeat_interleave(counts)
        groups = tuple(name.rpartition("/")[0] or "all" for name in files)
        shape = (3 if self.colour else 1, self.size, self.size)
        return Recipe(decode(sources, self.size, self.colour), shape, labels, tuple(files), groups)


def _layout(root: Path, tree: Tree, wanted: Sequence[str]) -> tuple[Classes, list[tuple[str, str]] | None, str]:
    """The class folders, the wanted splits they are listed in (None: to be dealt), and the layout in words."""
    folders = [split for split in SPLITS if _holds_folders(root / split)]
    lists = [split for split in SPLITS if os.path.isfile(root / f"{split}.txt")]
    found, ending = (lists, ".txt") if lists else (folders, "/")
    if not found:
        return tree.classes(root), None, ""
    for needed in ("train", "test"):
        if needed in wanted and needed not in found:
            raise UserError(f"data.root={shown(root)} has {found[0]}{ending} but no {needed}{ending}. Add it.")
    found = [split for split in found if split in wanted]
    words = f"{shown(root.name)}: {' '.join(split + ending for split in found)}"
    if lists:
        pairs = [(split, name) for split in found for name in _lines(root / f"{split}.txt")]
        everything = tree.classes(root)
        named = {name for _, name in pairs}
        classes_by_name(pairs, tuple(everything), f"data.root={shown(root)}")
        return {name: paths for name, paths in everything.items() if name in named}, pairs, words
    files: Classes = {}
    pairs = []
    for split in found:
        inside = tree.classes(root / split)
        if twice := sorted(set(inside) & set(files)):
            raise UserError(
                f"data.root={shown(root)} has the class {twice[0]} in {split}/ and in another split, "
                "and splits share no class. Put all class folders into one folder: metarun deals them."
            )
        files |= inside
        pairs += [(split, name) for name in inside]
    return files, pairs, words


def _holds_folders(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be read ({error.strerror}). Mend or remove it.") from error
    return any(not hidden(name) and os.path.isdir(folder / name) for name in names)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows puts a mark before the first letter
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({one_line(error)}). Mend it.") from error
    names = [shown(line.partition("#")[0].strip().strip("/")) for line in lines]
    if not any(names):
        raise UserError(f"{shown(path)} names no class. Write the names of class folders, one a line.")
    return [name for name in names if name]


def _listing(root: Path, files: Mapping[str, Sequence[Path]]) -> str:
    content = hashlib.sha256()
    for name, paths in files.items():
        place = paths[0].parent.relative_to(root)  # of all files of the class: to ask each would take seconds
        for path in paths:
            try:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:  # told when it is decoded, with all others
                state = "unreadable"
            content.update(f"{name} {place}/{path.name} {state}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()
