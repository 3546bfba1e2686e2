"""metarun's own training loop, run in pieces so that it can be timed in turns with other systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import workloads
from metarun.build import Parts, build
from metarun.loop import Loop, State, Tracker
from metarun.run import fresh_state, loop_of

NEVER = 10**9


class Enough(Exception):
    """The steps that were asked for are done."""


class Silent:
    def step(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def say(self, text: str) -> None: ...


class Piece:
    """A tracker that stops the loop, which would otherwise validate and save at its end."""

    def __init__(self, inner: Tracker) -> None:
        self.inner, self.until = inner, 0
        self.log, self.say = inner.log, inner.say

    def step(self, step: int) -> None:
        self.inner.step(step)
        if step >= self.until:
            raise Enough


@dataclass(frozen=True)
class Session:
    """A training by metarun's own loop, in pieces, without validation."""

    parts: Parts
    state: State
    loop: Loop
    piece: Piece
    sample: Any

    @staticmethod
    def start(overrides: Sequence[str], tracker: Tracker) -> Session:
        config = workloads.config(*overrides)
        parts = build(config, None)
        piece = Piece(tracker)
        loop = loop_of(config, parts, piece, Path("never written"), lambda state: {})
        endless = replace(loop.plan, steps=NEVER, max_seconds=float("inf"), val_every=NEVER, patience=None)
        return Session(parts, fresh_state(config, parts), replace(loop, plan=endless), piece, draw(parts)())

    def steps(self, count: int) -> None:
        self.piece.until = self.state.step + count
        with suppress(Enough):
            self.loop.run(self.state)

    def meta_grad(self) -> Any:
        assert self.state.parallel is not None  # steps() comes first
        return self.loop.algo.meta_grad(self.state.params, self.sample, self.state.parallel)


def draw(parts: Parts) -> Callable[[], Any]:
    """Meta-batches by metarun's sampler, one after another; the first is the same for every system."""
    generator = torch.Generator(parts.device).manual_seed(0)
    return lambda: parts.sampler.gather(parts.sampler.draw(parts.train.tasks, generator))
