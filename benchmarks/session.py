"""metarun's own training loop, run in pieces so that it can be timed in turns with other systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks import workloads
from metarun.build import Parts, build
from metarun.loop import Loop, Tracker
from metarun.run import fresh_state, loop_of
from metarun.settings import Job
from metarun.state import State

NEVER = 10**9


class Enough(Exception):
    """The steps that were asked for are done."""


class Silent:
    def step(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None: ...

    def say(self, text: str) -> None: ...


class Piece:
    """A tracker that stops the loop, which would otherwise validate and save at its end."""

    def __init__(self, inner: Tracker) -> None:
        self.inner, self.until = inner, 0
        self.log, self.matrix, self.say = inner.log, inner.matrix, inner.say

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
        job = workloads.job(*overrides)
        parts = build(job)
        piece = Piece(tracker)
        loop = loop_of(job, parts, piece, job.folder, lambda state: {})
        endless = replace(loop.plan, steps=NEVER, max_seconds=float("inf"), val_every=NEVER, patience=None)
        return Session(parts, fresh_state(job, parts), replace(loop, plan=endless), piece, draw(job, parts)())

    def steps(self, count: int) -> None:
        self.piece.until = self.state.step + count
        with suppress(Enough):
            self.loop.run(self.state)

    @property
    def tasks(self) -> int:
        """Of a meta-step."""
        return len(tree_leaves(self.sample)[0])

    def meta_grad(self) -> Any:
        assert self.state.parallel is not None  # steps() comes first
        return self.loop.algo(0).meta_grad(self.state.params, self.sample, self.state.parallel)


def draw(job: Job, parts: Parts) -> Callable[[], Any]:
    """Meta-batches by metarun's sampler, one after another; the first is the same for every system."""
    generator = torch.Generator(parts.device).manual_seed(0)
    return lambda: parts.sampler.gather(parts.sampler.draw(job.train.tasks, generator))
