"""Sinusoid regression: y = A sin(x − b), a task is an amplitude and a phase (Finn et al. 2017, 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.data.draw.offers import not_offered, one_size
from metarun.types import Batch, Count, Draw, Episode, Head, Heads, Rate, Span, UserError

AMPLITUDE = (0.1, 5.0)
INPUT = (-5.0, 5.0)


@dataclass(frozen=True)
class Sinusoid:
    """The family of tasks; nothing to load. `phase` is its largest phase: π in MAML, 2π in Reptile."""

    ways: Count
    shots: Count
    queries: Count
    phase: Rate

    def load(self, device: torch.device) -> SinusoidData:
        return SinusoidData(self.phase, device)


@dataclass(frozen=True)
class SinusoidData:
    phase: float
    device: torch.device

    metric: ClassVar[str] = "mse"
    offers: ClassVar[tuple[str, ...]] = ("episodes",)
    classes: ClassVar[dict[str, list[str]]] = {}

    @property
    def fingerprint(self) -> str:
        return f"sinusoid, phase up to {self.phase}"

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

    def tasks(self, by: str, shots: int) -> SinusoidSampler:
        raise not_offered(by, "sinusoid", self.offers)

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


def _between(low: float, high: float, lots: Tensor) -> Tensor:
    return low + (high - low) * lots
