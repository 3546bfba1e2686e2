"""The words every room shares: tensors by name, episodes, and the protocols that algorithms and data fulfil.

Letters for shapes: T tasks, N ways, K shots, Q queries per class, B rows, D features, H heads.

θ is one dict of tensors. The first word of an entry's name tells what becomes of it in a meta-step:

    (any other)   learned: `meta_grad` returns its slope, and the optimiser moves it
    memory.       kept: `meta_grad` returns its next value; where it returns none, the value stays
    now.          told: the loop writes it before each step, the same on all ranks, from `now.step` (the number of the
                  step) and `now.lots` (uniform numbers in [0, 1), as many as the entry has)

An adapted φ may hold one kind more: `metric.` entries, each a number about the task that is reported beside accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

# Who knows the other words finds these here.
from metarun.bounds import (  # noqa: F401
    Above,
    AtLeast,
    AtMost,
    Count,
    Natural,
    Positive,
    Rate,
    Seed,
    Share,
    Side,
    Span,
    Steps,
    ends,
)
from metarun.construct import COMPUTE_ONLY, PLACE, PROTOCOL, Place, nearest  # noqa: F401
from metarun.errors import UserError  # noqa: F401

Params = dict[str, Tensor]
Targets = dict[str, Tensor]
Outputs = dict[str, Tensor]
Metrics = dict[str, Tensor]

MEMORY, NOW, METRIC = "memory.", "now.", "metric."
STEP, LOTS = "now.step", "now.lots"
PACE = "pace"  # of a group of an optimiser: what the outer rate is multiplied by


def learned(params: Params) -> Params:
    """The entries that the optimiser moves."""
    return {name: p for name, p in params.items() if not name.startswith((MEMORY, NOW))}


def memory(params: Params) -> Params:
    """The entries whose next value `meta_grad` returns."""
    return {name: p for name, p in params.items() if name.startswith(MEMORY)}


def told(fast: Params) -> Metrics:
    """What φ tells about its task, by the names under which it is reported."""
    return {name.removeprefix(METRIC): p.detach() for name, p in fast.items() if name.startswith(METRIC)}


@dataclass(frozen=True)
class Head:
    """What one target is: a class out of `size` (int64 [B]), or `size` real values (float [B, size]).

    With `gaps` some rows have no such target: -100 as a class, NaN as a value. They count for nothing. A head that is
    `alone` is that of a task with inputs of its own: no row has another target beside it.
    With `fresh` classes, each task deals anew which class is which: class 0 of one is not that of another.
    """

    kind: Literal["class", "value"]
    size: int
    gaps: bool = False
    alone: bool = False
    fresh: bool = False


Heads = Mapping[str, Head]


class Batch(NamedTuple):
    """Inputs and their targets, one of every head."""

    x: Tensor  # [B, ...], or [T, B, ...] of T tasks; rows that all heads share have T = 1
    y: Targets


class Episode(NamedTuple):
    """T tasks: what each is learned from, and what it is judged by."""

    support: Batch  # x [T, N*K, ...], y[head] [T, N*K]
    query: Batch  # x [T, N*Q, ...], y[head] [T, N*Q]


class Score(NamedTuple):
    """How good predictions are, by head."""

    losses: dict[str, Tensor]  # the mean over the rows that have a target; 0 where none has
    rows: dict[str, Tensor]  # how many rows have one
    metrics: dict[str, Metrics]


Draw = dict[str, Tensor]


class Sampler(Protocol):
    """Draws from one split of a data set. To draw is to choose (a few small tensors), to gather is to fetch."""

    @property
    def heads(self) -> Heads:
        """What the targets of a sample are, by name."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that differs wherever the same draw would fetch other images or targets."""
        ...

    @property
    def from_disk(self) -> bool:
        """Whether gather waits for a disk, so that it is worth beginning early."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """What was chosen, on the generator's device. All tensors have one first axis, which ranks share by slices.

        It is `count` tasks long, or as many as there are; of rows that all heads share, `count` times the
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
    def fingerprint(self) -> str:
        """A text that differs wherever the content does: what a resumed run is held against."""
        ...

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The names of each split's classes, for people; empty where there are no classes to draw."""
        ...

    @property
    def metric(self) -> str:
        """The name of what a model is chosen by: a metric ("accuracy", "mse"), or one head's ("digit/accuracy")."""
        ...

    @property
    def offers(self) -> tuple[str, ...]:
        """The ways there are to draw training tasks, by name.

        "episodes": fresh tasks; "group": fixed tasks, as one of each group of classes, with heads of their own; "rows":
        one batch that all heads share.
        """
        ...

    def episodes(self, split: str, ways: Span, shots: Span, queries: int, section: str = ...) -> Sampler:
        """Fresh tasks of a split, of `shots` and `queries` of each way. Where ways or shots are two numbers, each task
        has its own number of them, from the first to the second.

        `section` is the part of the config where numbers that cannot be are to be mended.
        """
        ...

    def tasks(self, by: str, shots: int) -> Sampler:
        """The sampler of another way to draw training tasks than episodes; one that is not offered is refused."""
        ...

    def pictures(self, split: str) -> Iterator[tuple[str, Tensor]]:
        """Yields all images of a split, each once and as it is stored, uint8 [M, C, H, W], in pieces with a name (a
        class's, say). There are none where inputs are no images, or where there is no such split."""
        ...


class Source(Protocol):
    """What a data set's YAML describes."""

    def load(self, device: torch.device) -> Data:
        """Reads, or makes, the data set and brings it to the device."""
        ...


class ParallelMap(Protocol):
    """How a function that was written for one task is applied to the T tasks of a step, on all ranks together.

    `params` is θ, `tasks` a tree of tensors with T in front: this rank's share. What comes back is of all ranks' tasks.
    """

    def mean(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """fn(params, task) -> a tree of tensors; returns its mean over tasks."""
        ...

    def mean_grad(self, loss: Callable[..., Any], params: Params, tasks: Any) -> tuple[Params, Metrics]:
        """loss(params, task) -> (loss, metrics); returns the slope of the mean loss by name, and mean metrics."""
        ...

    def losses(self, score: Callable[..., Score], params: Params, tasks: Any) -> tuple[Tensor, Tensor, Metrics]:
        """score(params, task) -> Score; returns each head's loss over all rows [H], with the graph of this rank's
        share, the heads' numbers of rows [H], and metrics. Slopes taken of the losses are to be handed to `total`."""
        ...

    def slopes(self, score: Callable[..., Score], params: Params, tasks: Any) -> tuple[Tensor, Tensor, Metrics, Params]:
        """As `losses`, without graph, and each head's slope: by name [H, ...], of all ranks. Each task has one head
        of its own, so that one slope for each is enough."""
        ...

    def stack(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
        """fn(params, task) -> a tree of tensors; returns those of this rank's tasks with T in front, with graph."""
        ...

    def total(self, tree: Any) -> Any:
        """Sums each tensor of a tree over ranks."""
        ...


class Net(Protocol):
    """What others may ask of an algorithm's network."""

    @property
    def heads(self) -> Heads:
        """What the tasks at hand ask to be predicted."""
        ...

    @property
    def batch_norm(self) -> bool:
        """Whether predictions depend on the statistics of a batch."""
        ...


class MetaGradient(Protocol):
    """What training asks of an algorithm."""

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]:
        """Takes θ, the tasks of a step and how to map over them. Returns, by name, the slope of each learned entry and
        the next value of each memory that changes; and metrics, of which `loss` must be one: what the slopes are of.
        A learned entry without a slope stays where it is in this step. No input is changed."""
        ...


@runtime_checkable
class FirstOrder(Protocol):
    """What an algorithm is, too, whose slopes leave out by design some of how its `loss` depends on θ."""

    @property
    def first_order(self) -> bool:
        """Whether they do: a key of the algorithm, or a constant of its class."""
        ...


@runtime_checkable
class Penalised(Protocol):
    """What a network is, too, that asks for more than a small loss."""

    def penalty(self, params: Params) -> Tensor:
        """Takes its own entries, by its own names; returns one number. It depends on no data."""
        ...


@runtime_checkable
class Paced(Protocol):
    """What an algorithm is, too, whose learned entries do not all move at the outer rate."""

    def pace(self, params: Params) -> dict[str, float]:
        """Takes θ before training; returns by name what the outer rate is multiplied by for each learned entry."""
        ...


@runtime_checkable
class Reserved(Protocol):
    """What an algorithm is, too, that cannot be trained in every case in which it can be tested."""

    def check_trainable(self) -> None:
        """Refuses to be trained, with the remedy; asked before there is a run, where it has steps to train."""
        ...


def paces(algo: object, params: Params) -> dict[str, float]:
    """What the outer rate is multiplied by for each learned entry."""
    return algo.pace(params) if isinstance(algo, Paced) else dict.fromkeys(learned(params), 1.0)


class Algorithm(MetaGradient, Protocol):
    """Written for one task, pure, on a dict of tensors; the mapping over tasks is the business of `parallel`.

    An algorithm is made twice: with the heads that it trains on, and with those that it is tested on (then without
    dropout). `net` has the heads in question.
    """

    @property
    def net(self) -> Net:
        """The network, with the heads of its phase."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """θ before training, as the generator draws it."""
        ...

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        """Yields φ₀, φ₁, ...: at most `steps` + 1 of them. Where it ends early its last φ stands for the rest."""
        ...

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        """Takes an adapted φ and one task's inputs [B, ...]; returns logits or values by head [B, size]."""
        ...


class Balance(Protocol):
    """A way to weigh the losses or the slopes of several objectives against each other.

    `needs` says what it asks for: "losses" alone; "gram", the Gram matrix of the slopes by the shared entries of θ;
    "features", that of the slopes by the features which the heads share; "slopes", the slopes by the shared entries.
    """

    needs: ClassVar[Literal["losses", "gram", "features", "slopes"]]

    def init(self, tasks: int, size: int) -> Params:
        """The entries of θ that it keeps for so many objectives, under names of its own. `size` is P, how many numbers
        the shared entries hold."""
        ...

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        """Takes losses [H], NaN for an objective that no row of this step is about, whose slope is then zero; what it
        needs beside them: nothing, a Gram matrix [H, H], or the slopes [H, P]; and θ, in which its entries are.

        Returns weights, [H] or [H, P], and the next values or slopes of its own entries. The weights of the objectives
        that are there sum to 1 where all their slopes agree; what the others get is not used."""
        ...


class Optimizer(Protocol):
    """What the loop asks of an outer optimiser; every optimiser of torch is one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters with their options; the loop writes each step's rate to `lr`."""
        ...

    def step(self, closure: Callable[[], Tensor]) -> Any:
        """Moves the parameters. `closure` computes their gradient anew and returns the loss; call it at least once."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it keeps from step to step, to be saved."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` returned, to go on from there."""
        ...
