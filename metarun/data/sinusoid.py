"""Sinusoid regression: y = A sin(x − b), a task is an amplitude and a phase (Finn et al. 2017, 5.1).

Episodes are fresh tasks. Beside them there are `tasks` fixed ones, drawn once: each with a head of its own ("group") or
as points of all of them under one head ("rows"), which no network can predict better than by their mean at each x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.data.draw.offers import not_offered, one_size
from metarun.data.draw.tasks import some
from metarun.types import Batch, Count, Draw, Episode, Head, Heads, Rate, Seed, Span, UserError

AMPLITUDE = (0.1, 5.0)
INPUT = (-5.0, 5.0)


@dataclass(frozen=True)
class Sinusoid:
    """The family of tasks; nothing to load. `phase` is its largest phase: π in MAML, 2π in Reptile."""

    ways: Count
    shots: Count
    queries: Count
    phase: Rate
    tasks: Count
    tasks_seed: Seed

    def load(self, device: torch.device) -> SinusoidData:
        lots = torch.rand(2, self.tasks, generator=torch.Generator().manual_seed(self.tasks_seed))
        amplitude, phase = _between(*AMPLITUDE, lots[0]), _between(0.0, self.phase, lots[1])
        return SinusoidData(self.phase, amplitude, phase, self.tasks_seed, device)


@dataclass(frozen=True)
class SinusoidData:
    phase: float  # the largest
    amplitude: Tensor  # [tasks]: of the fixed ones
    own_phase: Tensor  # [tasks]
    seed: int
    device: torch.device

    metric: ClassVar[str] = "mse"
    offers: ClassVar[tuple[str, ...]] = ("episodes", "group", "rows")
    classes: ClassVar[dict[str, list[str]]] = {}

    @property
    def fingerprint(self) -> str:
        return f"sinusoid, phase up to {self.phase}, {len(self.amplitude)} fixed tasks (seed {self.seed})"

    @property
    def shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"split": "fresh tasks", "rotations": "none"}

    def episodes(self, split: str, ways: Span, shots: Span, queries: int, section: str = "data") -> SinusoidSampler:
        shots = one_size(f"{section}.shots", shots, "tasks of a regression")
        if ways != 1:
            raise UserError(f"{section}.ways={ways}: a regression has no classes. Leave it at 1.")
        for key, value in (("shots", shots), ("queries", queries)):
            if value < 1:
                raise UserError(f"{section}.{key}={value} must be at least 1. Raise it.")
        return SinusoidSampler(self.phase, shots, queries, self.device)

    def tasks(self, by: str, shots: int) -> FixedSampler:
        if by not in self.offers or by == "episodes":
            raise not_offered(by, "sinusoid", self.offers)
        amplitude, phase = self.amplitude.to(self.device), self.own_phase.to(self.device)
        return FixedSampler(amplitude, phase, shots, by == "rows", f"{self.fingerprint}, by {by}")

    def pictures(self, split: str) -> Iterator[tuple[str, Tensor]]:
        return iter(())


@dataclass(frozen=True)
class SinusoidSampler:
    phase: float
    shots: int
    queries: int
    device: torch.device

    @property
    def heads(self) -> Heads:
        return {"y": Head("value", 1)}

    @property
    def fingerprint(self) -> str:
        return f"sinusoid, phase up to {self.phase}"

    @property
    def from_disk(self) -> bool:
        return False

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Amplitudes [T], phases [T] and inputs [T, K+Q]."""
        lots = torch.rand(count, 2 + self.shots + self.queries, generator=generator, device=generator.device)
        return {
            "amplitude": _between(*AMPLITUDE, lots[:, 0]),
            "phase": _between(0.0, self.phase, lots[:, 1]),
            "x": _between(*INPUT, lots[:, 2:]),
        }

    def gather(self, draw: Draw) -> Episode:
        amplitude, phase, x = (draw[key].to(self.device) for key in ("amplitude", "phase", "x"))
        y = (amplitude[:, None] * torch.sin(x - phase[:, None]))[..., None]  # [T, K+Q, 1]
        x = x[..., None]
        return Episode(
            Batch(x[:, : self.shots], {"y": y[:, : self.shots]}),
            Batch(x[:, self.shots :], {"y": y[:, self.shots :]}),
        )


@dataclass(frozen=True)
class FixedSampler:
    """Points of the fixed tasks: of T of them in order, each with a head; or, `mixed`, of all under one head."""

    amplitude: Tensor  # [tasks]
    phase: Tensor  # [tasks]
    shots: int
    mixed: bool
    fingerprint: str

    @property
    def heads(self) -> Heads:
        if self.mixed:
            return {"y": Head("value", 1)}
        return {f"task{i}": Head("value", 1, gaps=True, alone=True) for i in range(len(self.amplitude))}

    @property
    def from_disk(self) -> bool:
        return False

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Tasks [T] ascending and without repetition (all of them where T is as many) and inputs [T, B]; mixed, tasks
        [count * shots] with repetition, and an input for each."""
        device, there = generator.device, len(self.amplitude)
        if self.mixed:
            shape = (count * self.shots,)
            task = torch.randint(there, shape, generator=generator, device=device)
            return {"task": task, "x": _between(*INPUT, torch.rand(shape, generator=generator, device=device))}
        task = some(there, count, generator)
        lots = torch.rand(len(task), self.shots, generator=generator, device=device)
        return {"task": task, "x": _between(*INPUT, lots)}

    def gather(self, draw: Draw) -> Batch:
        """x [T, B, 1], y[head] [T, B, 1], known in the row of the task that the head is of; mixed, T is 1."""
        task, x = (draw[key].to(self.amplitude.device) for key in ("task", "x"))
        if self.mixed:
            y = self.amplitude[task] * torch.sin(x - self.phase[task])
            return Batch(x[None, :, None], {"y": y[None, :, None]})
        y = self.amplitude[task, None] * torch.sin(x - self.phase[task, None])
        each = torch.arange(len(self.amplitude), device=x.device)[:, None, None]
        known = torch.where(task[:, None] == each, y, torch.nan)  # [tasks, T, B]
        return Batch(x[..., None], dict(zip(self.heads, known[..., None].unbind(), strict=True)))


def _between(low: float, high: float, lots: Tensor) -> Tensor:
    return low + (high - low) * lots
