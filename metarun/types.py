"""The words every room shares: tensors by name, episodes, and the protocols that algorithms and data fulfil.

Letters for shapes: T tasks, N ways, K shots, Q queries per class, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

# Who knows the other words finds these here.
from metarun.construct import COMPUTE_ONLY, AtLeast, Count, Natural, Rate, Share  # noqa: F401
from metarun.errors import UserError  # noqa: F401

Params = dict[str, Tensor]
Targets = dict[str, Tensor]
Outputs = dict[str, Tensor]
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Head:
    """What one target is: a class out of `size`, or `size` real values."""

    kind: Literal["class", "value"]
    size: int


Heads = Mapping[str, Head]


class Batch(NamedTuple):
    """Inputs and their targets. A class target of -100 means: this row has no such target."""

    x: Tensor  # [B, ...], or [T, B, ...] for a batch of each of T fixed tasks
    y: Targets


class Episode(NamedTuple):
    """T tasks: what each is learned from, and what it is judged by."""

    support: Batch  # x [T, N*K, ...], y[head] [T, N*K]
    query: Batch  # x [T, N*Q, ...], y[head] [T, N*Q]


Draw = dict[str, Tensor]


class Sampler(Protocol):
    """Draws tasks from one split. `draw` chooses (a few small tensors), `gather` fetches what was chosen."""

    @property
    def heads(self) -> Heads: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def from_disk(self) -> bool: ...  # gather waits for a disk: worth beginning early

    def draw(self, tasks: int, generator: torch.Generator) -> Draw: ...

    def gather(self, draw: Draw) -> Any: ...


class Data(Protocol):
    """A data set on its device, ready to be drawn from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def protocol(self) -> dict[str, Any]: ...

    def episodes(self, split: str, ways: int, shots: int, queries: int, section: str = ...) -> Sampler: ...

    def tasks(self, by: str, shots: int) -> Sampler: ...


class ParallelMap(Protocol):
    """How a function written for one task is mapped over T of them."""

    def mean(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any: ...

    def mean_grad(self, loss: Callable[..., Any], params: Params, tasks: Any) -> tuple[Params, Metrics]: ...


class MetaGradient(Protocol):
    """What training asks of an algorithm."""

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]: ...


class Algorithm(MetaGradient, Protocol):
    """Written for one task, pure; the mapping over tasks is the business of `parallel`.

    `trains_on` is "episodes" (fresh N-way tasks), or what one fixed task is: a "group" of classes
    (an alphabet of Omniglot), or "all" training classes at once.
    """

    trains_on: ClassVar[str]

    def init(self, generator: torch.Generator) -> Params: ...

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]: ...

    def predict(self, fast: Params, x: Tensor) -> Outputs: ...
