"""The words every room shares: tensors by name, episodes, and the protocols that algorithms and data fulfil.

Letters for shapes: T tasks, N ways, K shots, Q queries per class, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from metarun.errors import UserError  # noqa: F401 (who knows the other words finds it here)

Params = dict[str, Tensor]
Targets = dict[str, Tensor]
Outputs = dict[str, Tensor]
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Head:
    """What one target is: a class out of `size` (int64 [B]), or `size` real values (float [B, size])."""

    kind: Literal["class", "value"]
    size: int


Heads = Mapping[str, Head]


class Batch(NamedTuple):
    """Inputs and their targets, one of every head. Where a row has no such target, its class is -100, its value NaN."""

    x: Tensor  # [B, ...], or [T, B, ...] for a batch of each of T fixed tasks; rows that all heads share have T = 1
    y: Targets


class Episode(NamedTuple):
    """T tasks: what each is learned from, and what it is judged by."""

    support: Batch  # x [T, N*K, ...], y[head] [T, N*K]
    query: Batch  # x [T, N*Q, ...], y[head] [T, N*Q]


Draw = dict[str, Tensor]


class Sampler(Protocol):
    """Draws from one split of a data set. To draw is to choose (a few small tensors), to gather is to fetch."""

    @property
    def heads(self) -> Heads:
        """What the targets of a sample are, by name."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that differs wherever the same draw would fetch something else."""
        ...

    @property
    def from_disk(self) -> bool:
        """Whether gather waits for a disk, so that it is worth beginning early."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """What was chosen, on the generator's device. All tensors have one first axis, which ranks share by slices.

        It is `count` tasks long, or as many as there are fixed tasks; of rows that all heads share, `count` times the
        shots of the sampler.
        """
        ...

    def gather(self, draw: Draw) -> Any:
        """What a draw, or a slice of it, chose: an Episode of its tasks, or a Batch of fixed tasks or of rows."""
        ...


class Data(Protocol):
    """A data set on its device, ready to be drawn from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        ...

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader of results must know of it: the split, the rotations."""
        ...

    @property
    def metric(self) -> str:
        """The name of what a model is chosen by: a metric ("accuracy", "mse"), or one head's ("digit/accuracy")."""
        ...

    @property
    def offers(self) -> tuple[str, ...]:
        """The ways there are to draw training tasks, by name.

        "episodes": fresh tasks; "group": a fixed task of each group of classes; "rows": one batch that all heads share.
        """
        ...

    def episodes(self, split: str, ways: int, shots: int, queries: int, section: str = ...) -> Sampler:
        """Fresh tasks of a split, of `shots` and `queries` of each way.

        `section` is the part of the config where numbers that cannot be are to be mended.
        """
        ...

    def tasks(self, by: str, shots: int) -> Sampler:
        """The sampler of another way to draw training tasks than episodes; one that is not offered is refused."""
        ...


class ParallelMap(Protocol):
    """How a function written for one task is mapped over T of them."""

    def mean(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any: ...

    def mean_grad(self, loss: Callable[..., Any], params: Params, tasks: Any) -> tuple[Params, Metrics]: ...


class MetaGradient(Protocol):
    """What training asks of an algorithm."""

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]: ...


class Algorithm(MetaGradient, Protocol):
    """Written for one task, pure; the mapping over tasks is the business of `parallel`.

    `trains_on` is one of the ways to draw training tasks that a data set offers, see Data.
    """

    trains_on: ClassVar[str]

    def init(self, generator: torch.Generator) -> Params: ...

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]: ...

    def predict(self, fast: Params, x: Tensor) -> Outputs: ...
