"""Data sets side by side: tasks with inputs of their own, all on one trunk.

Each set is a task, or as many as it has files; its heads are called by its name and theirs, as `mnist_tasks/digit`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metarun.data.draw.named import picked
from metarun.data.draw.rows import Rows
from metarun.data.draw.table import TableData
from metarun.data.images.mapped import Mapped
from metarun.errors import UserError
from metarun.types import Count, Natural, Source

SPLITS = ("train", "val", "test")
KEY = re.compile(r"(?<![\w./])data\.(?=\w+[=.:\s])")  # of one set, in an error


@dataclass(frozen=True)
class Mix:
    """`sources` are what `sets` name, each with its `keys`, as the run builds them."""

    sets: Sequence[str]
    keys: Mapping[str, Any] | None
    ways: Count
    shots: Natural
    queries: Count
    sources: Mapping[str, Source]

    def load(self, device: torch.device) -> TableData:
        if len(self.sets) < 2:
            raise UserError(f"data.sets=[{''.join(self.sets)}] names fewer than two data sets. Name several.")
        names = picked("data.sets", self.sets, self.sources, "data set")
        loaded = {name: _loaded(name, self.sources[name], device) for name in names}
        first = loaded[names[0]]
        for name, data in loaded.items():
            if data.shape != first.shape:
                raise UserError(
                    f"data.sets: {name} has inputs of shape {list(data.shape)}, {names[0]} of {list(first.shape)}: one "
                    "trunk takes one shape. Leave one of them out."
                )
        images = torch.cat([_whole(data, device) for data in loaded.values()])
        content = hashlib.sha256(" ".join(f"{name} {data.content}" for name, data in loaded.items()).encode())
        splits = {split: _beside(split, loaded) for split in SPLITS}
        metric = _metric(names[0], first)
        return TableData("mix", images, splits, content.hexdigest(), _protocol(loaded), metric).to(device, True)


def _loaded(name: str, source: Source, device: torch.device) -> TableData:
    """One set; what is wrong with its keys is told by the names under which they are typed here."""
    try:
        data = source.load(device)
    except UserError as error:
        raise UserError(KEY.sub(f"data.keys.{name}.", str(error))) from error
    if not isinstance(data, TableData):
        raise UserError(
            f"data.sets: {name} deals classes or curves anew to each task. Side by side stand data sets whose heads "
            "stay the same, as mnist_tasks, multimnist and table."
        )
    return data


def _whole(data: TableData, device: torch.device) -> Tensor:
    return data.images.whole(device) if isinstance(data.images, Mapped) else data.images


def _beside(split: str, loaded: Mapping[str, TableData]) -> Rows:
    """One split's rows of all sets, one set after the other."""
    each = [data.splits[split] for data in loaded.values()]
    sizes, images = [len(rows.image) for rows in each], [data.images.shape[0] for data in loaded.values()]
    heads, targets = {}, {}
    for i, (name, rows) in enumerate(zip(loaded, each, strict=True)):
        for head, kind in rows.heads.items():
            alone = kind.alone if rows.parts else len(rows.heads) == 1
            heads[f"{name}/{head}"] = replace(kind, gaps=True, alone=alone)
            target = rows.targets[head]
            none = -100 if kind.kind == "class" else torch.nan
            blank = [target.new_full((size, *target.shape[1:]), none) for size in sizes]
            targets[f"{name}/{head}"] = torch.cat([*blank[:i], target, *blank[i + 1 :]])
    return Rows(
        image=torch.cat([rows.image + sum(images[:i]) for i, rows in enumerate(each)]),
        turns=torch.cat([rows.turns for rows in each]),
        targets=targets,
        heads=heads,
        parts=tuple(part for rows, size in zip(each, sizes, strict=True) for part in rows.parts or (size,)),
    )


def _metric(name: str, data: TableData) -> str:
    """What the first set is chosen by; where that is a mean over its heads, the mean over all heads that have it."""
    heads = list(data.splits["train"].heads)
    if len(heads) == 1:
        return f"{name}/{heads[0]}/{data.metric}"
    return f"{name}/{data.metric}" if "/" in data.metric else data.metric


def _protocol(loaded: Mapping[str, TableData]) -> dict[str, Any]:
    """Of each key what every set says, or what all of them say."""
    found = {}
    for key in dict.fromkeys(key for data in loaded.values() for key in data.protocol):
        said = {name: str(data.protocol[key]) for name, data in loaded.items() if key in data.protocol}
        different = list(dict.fromkeys(said.values()))
        alike = len(said) == len(loaded) and len(different) == 1
        found[key] = different[0] if alike else "; ".join(f"{name}: {words}" for name, words in said.items())
    return found
