"""Images dealt to splits by class, and the ways to draw tasks from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metarun.data.draw.episodes import CLASS, EpisodeSampler, Sizes
from metarun.data.draw.offers import not_offered
from metarun.data.draw.rows import Rows, RowSampler
from metarun.data.draw.split import ClassSplit, Turning, stored
from metarun.data.draw.table import metric_of
from metarun.data.draw.tasks import TaskSampler
from metarun.data.images.collection import Collection
from metarun.data.images.mapped import Mapped, Resident, placed
from metarun.errors import UserError
from metarun.types import Head, Span, ends

Within = Literal["group"] | None  # what the ways of an episode have in common


@dataclass(frozen=True)
class ImageData:
    name: str
    images: Tensor | Mapped  # uint8 [M, C, H, W]
    splits: Mapping[str, ClassSplit]
    fingerprint: str
    protocol: dict[str, Any]  # what a reader of results must know: split, rotations
    within: Within = None
    unlabelled: int = 0  # of each way of a task, beside its shots
    remedy: str = "Lower one of them"  # where a class has too few images
    values: Mapping[str, Tensor] = field(default_factory=dict)  # float [M]: what else is known of each image, by name
    asked: tuple[str, ...] = (CLASS,)  # the heads: the class, or names of values

    @property
    def metric(self) -> str:
        return metric_of({name: Head("class" if name == CLASS else "value", 1) for name in self.asked})

    @property
    def offers(self) -> tuple[str, ...]:
        """A group has its classes alone."""
        return ("episodes", "rows") if self.values else ("episodes", "group", "rows")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Turned ones once."""
        return {name: list(dict.fromkeys(split.names)) for name, split in self.splits.items()}

    def pictures(self, split: str) -> Iterator[tuple[str, Tensor]]:
        """The images of one class after the other; a turned class shows those of the one that is not."""
        if split in self.splits:
            chosen = self.splits[split]
            for c in (chosen.turns == 0).nonzero().flatten().tolist():
                yield chosen.names[c], stored(self.images, chosen.rows[c, : int(chosen.counts[c])])

    def to(self, device: torch.device, resident: Resident) -> ImageData:
        moved = {name: split.to(device) for name, split in self.splits.items()}
        values = {name: value.to(device) for name, value in self.values.items()}
        return replace(self, images=placed(self.images, device, resident), splits=moved, values=values)

    def episodes(self, split: str, ways: Span, shots: Span, queries: int, section: str = "data") -> EpisodeSampler:
        """Tasks of one split; `section` is the part of the config where a number that cannot be is mended."""
        for key, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
            if ends(value)[0] < least:
                raise UserError(f"{section}.{key}={value} must be at least {least}. Raise it.")
        if self.unlabelled and not isinstance(shots, int):
            raise UserError(
                f"data.unlabelled={self.unlabelled} with {section}.shots={[*shots]}: what fills a task up would pass "
                "for unlabelled. Give one number of shots, or none unlabelled."
            )
        chosen, most = self._split(split), ends(ways)[1]
        if most > len(chosen.counts):
            raise UserError(
                f"{section}.ways={ways} is more than the {len(chosen.counts)} classes of {self.name}'s {split} "
                "split. Lower it."
            )
        self._check_images(chosen, ends(shots)[1], queries, section)
        groups = None if self.within is None else self._groups(split, most, section)
        sizes = Sizes(ends(ways), ends(shots), queries, self.unlabelled)
        fingerprint = self._fingerprint(chosen, groups)
        return EpisodeSampler(self.images, chosen, sizes, fingerprint, groups, self.values, self.asked)

    def _check_images(self, split: ClassSplit, shots: int, queries: int, section: str) -> None:
        fewest, needed = int(split.counts.min()), shots + self.unlabelled + queries
        if needed <= fewest:
            return
        uneven = fewest < int(split.counts.max())
        owner = f"{self.name}'s class {split.names[int(split.counts.argmin())]}" if uneven else self.name
        unlabelled = f" and data.unlabelled={self.unlabelled}" if self.unlabelled else ""
        raise UserError(
            f"{section}.shots={shots} with {section}.queries={queries}{unlabelled} needs {needed} images per class; "
            f"{owner} has {fewest}. {self.remedy}."
        )

    def _groups(self, split: str, ways: int, section: str) -> Tensor:
        """The groups of a split that have as many classes as there are ways: bool [G, classes]."""
        owners = self.splits[split].groups
        names = sorted(set(owners))
        members = torch.tensor([[owner == name for owner in owners] for name in names], device=self.images.device)
        sizes = members.sum(1)
        if ways > int(sizes.max()):
            raise UserError(
                f"{section}.ways={ways} with data.within=group is more than the {int(sizes.max())} classes of "
                f"{names[int(sizes.argmax())]}, the largest group of {self.name}'s {split} split. Lower {section}.ways."
            )
        return members[sizes >= ways]

    def _fingerprint(self, split: ClassSplit, groups: Tensor | None = None) -> str:
        """Of the content and of what a draw's indices mean: another split seed is another set of episodes."""
        content = hashlib.sha256(self.fingerprint.encode())
        if self.values:
            content.update(" ".join(self.asked).encode())
        parts = [split.rows, split.counts, split.turns, *([] if groups is None else [groups]), *self.values.values()]
        for part in parts:
            content.update(part.cpu().contiguous().numpy().data)
        return f"sha256:{content.hexdigest()}"

    def _split(self, name: str) -> ClassSplit:
        if name not in self.splits:
            raise UserError(f"data.splits=[{','.join(self.splits)}] leaves out {name}, which is needed. Add it.")
        return self.splits[name]

    def tasks(self, by: str, shots: int) -> TaskSampler | RowSampler:
        split = self._split("train")
        if split.by_episode and by in self.offers:
            raise UserError(
                f"data.rotations=episode turns the classes of an episode, and algo.trains_on={by} draws none. "
                "Take true or false."
            )
        if by == "group" and by in self.offers:
            return TaskSampler.of_groups(self.images, split, shots, self.fingerprint)
        if by == "rows":
            return RowSampler(self.images, self._rows(split), shots, self._fingerprint(split))
        raise not_offered(by, self.name, self.offers)

    def _rows(self, split: ClassSplit) -> Rows:
        """Those of a split, with what is asked of them: its class among all, or values."""
        rows = Rows.of_classes(split)
        if not self.values:
            return rows
        heads = {CLASS: rows.heads["all"], **dict.fromkeys(self.values, Head("value", 1))}
        targets = {CLASS: rows.targets["all"], **{name: v[rows.image, None] for name, v in self.values.items()}}
        return replace(rows, heads={n: heads[n] for n in self.asked}, targets={n: targets[n] for n in self.asked})


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
    turned: Mapping[str, Turning],
    protocol: dict[str, Any],
    within: Within = None,
    unlabelled: int = 0,
) -> ImageData:
    """Deals a collection's classes to splits, each `turned` in its own way."""
    if within is not None:  # else no word of it: results of before stay comparable
        protocol = {**protocol, "within": within}
    if unlabelled:
        protocol = {**protocol, "unlabelled": unlabelled}
    splits = {
        split: _class_split(collection, torch.tensor(list(chosen)), turned[split]) for split, chosen in classes.items()
    }
    return ImageData(name, collection.images, splits, collection.fingerprint, protocol, within, unlabelled)


def _class_split(collection: Collection, chosen: Tensor, turned: Turning) -> ClassSplit:
    turns = 4 if turned is True else 1
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
        by_episode=turned == "episode",
    )
