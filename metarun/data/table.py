"""Your own table: columns of a CSV or Parquet file to predict from, and one or more columns to be predicted.

Of several files each is a task with rows of its own, all on one trunk; an input that a file lacks is 0 there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from metarun.data.columns import deal, encode
from metarun.data.columns.encode import Target
from metarun.data.columns.sheet import SUFFIXES, Sheet
from metarun.data.columns.whole import Whole
from metarun.data.draw.named import picked
from metarun.data.draw.rows import Rows
from metarun.data.draw.table import TableData, metric_of
from metarun.data.images.root import root_of
from metarun.errors import UserError, few, one_line, shown
from metarun.types import COMPUTE_ONLY, PLACE, Count, Natural, Seed, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """`root` is a file, several of them, or a folder of such. `group`: rows with the same value there share a split."""

    root: Annotated[str | Sequence[str], COMPUTE_ONLY, PLACE]
    targets: str | Sequence[str]
    inputs: Sequence[str] | None
    classes: Sequence[str]
    group: str | None
    split: Sequence[float]
    split_seed: Seed
    ways: Count
    shots: Natural
    queries: Count

    def load(self, device: torch.device) -> TableData:
        deal.check_shares(self.split)
        everything, inputs, targets = self._read()
        whole = everything.kept(known) if (known := _known(everything, targets)).any() else everything
        split = self._split(whole)
        there = {name: whole.there(name) for name in inputs}
        x, told = encode.inputs({n: whole.columns[n] for n in inputs}, there, split == 0, self.inputs is not None)
        found = _heads(whole, targets, split == 0)
        told = [*_told_of(targets, everything), *told]
        if told:
            log.warning("data.root=%s: %s.", few(whole.sources), "; ".join(told))
        heads = {name: target.head for name, target in found.items()}
        splits = {name: _rows(split == i, found, whole) for i, name in enumerate(deal.SPLITS)}
        content = _digest(x, found)
        data = TableData("table", x, splits, content, self._protocol(split, found), metric_of(heads))
        return data.to(device, True)

    def _read(self) -> tuple[Whole, list[str], list[str]]:
        """All rows, and the names of inputs and targets."""
        sheets = [Sheet.read(path) for path in _files(self.root)]
        there = list(dict.fromkeys(name for sheet in sheets for name in sheet.names))
        given = [self.targets] if isinstance(self.targets, str) else list(self.targets)
        targets = picked("data.targets", given, there, "column")
        classes = picked("data.classes", self.classes, there, "column") if self.classes else []
        grouped = [] if self.group is None else [self.group]
        for sheet in sheets:
            if missing := [name for name in grouped if name not in sheet.names]:
                raise UserError(
                    f"data.group={missing[0]}: no such column in {shown(sheet.path)}.{nearest(missing[0], sheet.names)}"
                )
            if not set(targets) & set(sheet.names):
                raise UserError(f"{shown(sheet.path)} has none of data.targets.{nearest(targets[0], sheet.names)}")
        if self.inputs is None:
            inputs = [name for name in there if name not in (*targets, *grouped)]
        else:
            inputs = picked("data.inputs", self.inputs, there, "column")
        if both := [name for name in inputs if name in targets]:
            raise UserError(f"data.inputs and data.targets both name {both[0]}: it would be predicted from itself.")
        whole = Whole.of(sheets, dict.fromkeys([*inputs, *targets, *grouped]), [*classes, *grouped])
        return whole, inputs, targets

    def _split(self, whole: Whole) -> Tensor:
        """The split of each row, 0, 1 or 2 [R]: each has rows of every file."""
        if self.group is None:
            split = deal.by_row(whole.file, self.split, self.split_seed)
        else:
            split = deal.by_group(whole.columns[self.group], self.split, self.split_seed)
        for file, source in enumerate(whole.sources):
            sizes = torch.bincount(split[whole.file == file], minlength=len(deal.SPLITS)).tolist()
            if 0 in sizes:
                told = "/".join(map(str, sizes))
                raise UserError(
                    f"data.split={[*self.split]} deals {told} rows of {source} to {'/'.join(deal.SPLITS)}, and each "
                    "needs some. Add rows, give other shares, or try another data.split_seed."
                )
        return split

    def _protocol(self, split: Tensor, found: Mapping[str, Target]) -> dict[str, str]:
        by = "rows" if self.group is None else f"by {self.group}"
        sizes = "/".join(map(str, torch.bincount(split, minlength=3).tolist()))
        scaled = [target.scale for target in found.values() if target.scale]
        protocol = {"split": f"{by} (seed {self.split_seed}): {sizes} rows", "rotations": "none"}
        return protocol | ({"values": ", ".join(scaled)} if scaled else {})


def _files(root: str | Sequence[str]) -> list[Path]:
    """The files that data.root names, or that lie in the folder that it names."""
    if not isinstance(root, str):
        paths = [root_of(name) for name in root]
        if not paths:
            raise UserError("data.root=[] names no file. Give one, as data.root=houses.csv.")
    elif not os.path.isdir(root_of(root)):
        return [root_of(root)]
    else:
        try:
            names = sorted(os.listdir(root_of(root)))
        except OSError as error:
            raise UserError(f"data.root={shown(root)} cannot be read ({one_line(error)}). Mend it.") from error
        paths = [root_of(root) / n for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES)]
        if not paths:
            raise UserError(
                f"data.root={shown(root)} holds no file that ends in {', '.join(SUFFIXES)}. Name one, as "
                "data.root=houses.csv."
            )
    stems = [path.stem for path in paths]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise UserError(f"data.root: two files are called {shown(twice[0])}, and so would be their heads. Rename one.")
    return paths


def _known(whole: Whole, targets: Sequence[str]) -> Tensor:
    """Which rows have a target: bool [R]. The others tell nothing."""
    return torch.stack([~whole.columns[name].missing for name in targets]).any(0)


def _heads(whole: Whole, targets: Sequence[str], train: Tensor) -> dict[str, Target]:
    """Of each target, by its name; where several files have it, of each file's, as `file/target`."""
    found, several = {}, len(whole.sources) > 1
    owners = [file for name in targets for file in whole.owners[name]]
    for name in targets:
        for file in whole.owners[name]:
            head = name if len(whole.owners[name]) == 1 else f"{whole.stems[file]}/{name}"
            made = encode.target(head, whole.of_file(name, file), train, whole.names)
            alone = several and owners.count(file) == 1
            found[head] = made._replace(head=replace(made.head, alone=alone))
    return found


def _rows(chosen: Tensor, found: Mapping[str, Target], whole: Whole) -> Rows:
    """One split's, file by file."""
    place = chosen.nonzero().flatten()
    files = len(whole.sources)
    parts = tuple(torch.bincount(whole.file[place], minlength=files).tolist()) if files > 1 else ()
    heads = {name: target.head for name, target in found.items()}
    return Rows(place, torch.zeros_like(place), {n: target.y[place] for n, target in found.items()}, heads, parts)


def _told_of(targets: Sequence[str], whole: Whole) -> list[str]:
    """What a person should know of the targets."""
    told = []
    for name in targets:
        column = whole.columns[name]
        missing = int((column.missing & whole.there(name)).sum())
        if missing:
            told.append(f"{missing:,} missing values of {name} count for nothing")
        known = column.values[~column.missing]
        if column.words is None and len(known.unique()) <= encode.FEW_WORDS and known.eq(known.round()).all():
            told.append(f"{name} is a value; if its few whole numbers are classes, say data.classes=[{name}]")
    return told


def _digest(x: Tensor, found: Mapping[str, Target]) -> str:
    """A text that differs wherever inputs or targets do."""
    content = hashlib.sha256(f"{list(x.shape)} {[(n, t.head.kind, t.head.size) for n, t in found.items()]}".encode())
    for part in (x, *(target.y for target in found.values())):
        content.update(part.contiguous().numpy().data)
    return f"sha256:{content.hexdigest()}"
