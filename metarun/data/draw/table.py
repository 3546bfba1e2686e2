"""Images or vectors with several targets each, dealt to splits by row, and the ways to draw from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.data.draw.offers import not_offered, one_size
from metarun.data.draw.rows import PartSampler, RowEpisodeSampler, Rows, RowSampler
from metarun.data.draw.split import stored
from metarun.data.images.collection import Collection
from metarun.data.images.mapped import PIECE, Mapped, Resident, placed
from metarun.errors import UserError
from metarun.types import Heads, Span, Targets


@dataclass(frozen=True)
class TableData:
    """The rows of each split. Training is on batches of rows, on tasks drawn from them, or, where rows are in parts, on
    fixed tasks; validation and test are on tasks dealt from them."""

    name: str
    images: Tensor | Mapped  # uint8 [M, C, H, W], or vectors [M, D]
    splits: Mapping[str, Rows]
    content: str  # a text that differs wherever images or targets do
    protocol: dict[str, Any]
    metric: str

    classes: ClassVar[dict[str, list[str]]] = {}

    @staticmethod
    def dealt(
        name: str,
        collection: Collection,
        parts: Mapping[str, Tensor],
        targets: Targets,
        heads: Heads,
        protocol: dict[str, Any],
        metric: str,
    ) -> TableData:
        """All images of a collection with their targets, dealt to splits: `parts` are the numbers of those of each."""
        splits = {
            split: Rows(chosen, torch.zeros_like(chosen), {head: targets[head][chosen] for head in heads}, heads)
            for split, chosen in parts.items()
        }
        return TableData(name, collection.images, splits, collection.fingerprint, protocol, metric)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(map(self._fingerprint, self.splits.values())).encode()).hexdigest()

    @property
    def offers(self) -> tuple[str, ...]:
        return ("episodes", "group", "rows") if self.splits["train"].parts else ("episodes", "rows")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def pictures(self, split: str) -> Iterator[tuple[str, Tensor]]:
        """The images in pieces, which are named by the place of their first one."""
        if len(self.shape) != 3:
            return
        for rows in self.splits[split].image.split(PIECE):
            yield f"images from {int(rows[0])} on", stored(self.images, rows)

    def to(self, device: torch.device, resident: Resident) -> TableData:
        moved = {name: rows.to(device) for name, rows in self.splits.items()}
        return replace(self, images=placed(self.images, device, resident), splits=moved)

    def episodes(self, split: str, ways: Span, shots: Span, queries: int, section: str = "data") -> RowEpisodeSampler:
        shots = one_size(f"{section}.shots", shots, f"tasks of {self.name}")
        if ways != 1:
            raise UserError(f"{section}.ways={ways}: {self.name} has no classes to draw. Leave it at 1.")
        train = split == "train"  # where a task without shots could teach nothing
        for key, value, least in (("shots", shots, int(train)), ("queries", queries, 1)):
            if value < least:
                raise UserError(f"{section}.{key}={value} must be at least {least}. Raise it.")
        rows = self.splits[split]
        self._check_rows(split, min(rows.parts or (len(rows.image),)), shots, queries, section)
        sizes = self._sizes(rows) if train else None
        return RowEpisodeSampler(self.images, rows, shots, queries, self._fingerprint(rows), sizes)

    def _check_rows(self, split: str, there: int, shots: int, queries: int, section: str) -> None:
        """Refuses tasks that so many rows do not give; without shots two of them, else an interval has no meaning."""
        needed = shots + queries if shots else 2 * queries
        if needed > there:
            two = "" if shots else ", for two tasks"
            raise UserError(
                f"{section}.shots={shots} with {section}.queries={queries} needs {needed} rows{two}; "
                f"{self.name}'s {split} split has {there}. Lower one of them."
            )

    def tasks(self, by: str, shots: int) -> RowSampler | PartSampler:
        if by not in self.offers or by == "episodes":
            raise not_offered(by, self.name, self.offers)
        rows = self.splits["train"]
        if by == "rows":
            return RowSampler(self.images, rows, shots, self._fingerprint(rows))
        return PartSampler(self.images, rows, self._sizes(rows), shots, self._fingerprint(rows))

    def _sizes(self, rows: Rows) -> Tensor:
        """How many rows each part has [parts]."""
        return torch.tensor(rows.parts or [len(rows.image)], device=rows.image.device)

    def _fingerprint(self, rows: Rows) -> str:
        """Of the content and of what a draw's indices mean."""
        content = hashlib.sha256(f"{self.content} {' '.join(rows.heads)}".encode())
        for part in (rows.image, rows.turns):
            content.update(part.cpu().contiguous().numpy().data)
        return f"sha256:{content.hexdigest()}"


def metric_of(heads: Heads) -> str:
    """What a model is chosen by: the metric of the first head."""
    name, head = next(iter(heads.items()))
    kind = "accuracy" if head.kind == "class" else "mse"
    return kind if len(heads) == 1 else f"{name}/{kind}"
