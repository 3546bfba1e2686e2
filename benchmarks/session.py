"""metarun's own training loop, run in pieces so that it can be timed in turns with other systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import workloads
from metarun.build import Parts, build
from metarun.compiled import Compiled
from metarun.construct import construct, prepared
from metarun.loop import Loop, Plan, State, Tracker
from metarun.run import choose
from metarun.types import Params

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
        params = first_params(parts)
        piece = Piece(tracker)
        plan = Plan(
            seed=parts.root.seed,
            steps=NEVER,
            tasks=parts.train.tasks,
            lr=config["optim"]["lr"],
            max_seconds=float("inf"),
            clip_value=parts.train.clip_value,
            clip_norm=parts.train.clip_norm,
            log_every=parts.train.log_every,
            val_every=NEVER,
            patience=None,
        )
        algo = Compiled(parts.algo) if parts.root.compile else parts.algo
        loop = Loop(
            algo=algo,
            sampler=parts.sampler,
            validate=lambda state: {},
            factor=prepared(config["schedule"], "schedule", "step", "steps"),
            choose=partial(choose, parts, tracker),
            stop=lambda: None,
            plan=plan,
            tracker=piece,
            folder=Path("never written"),
            device=parts.device,
        )
        optimizer = construct(config["optim"], "optim", params=list(params.values()))
        return Session(parts, State(params, optimizer), loop, piece, draw(parts)())

    def steps(self, count: int) -> None:
        self.piece.until = self.state.step + count
        with suppress(Enough):
            self.loop.run(self.state)

    def meta_grad(self) -> Any:
        assert self.state.parallel is not None  # steps() comes first
        return self.loop.algo.meta_grad(self.state.params, self.sample, self.state.parallel)


def first_params(parts: Parts) -> Params:
    fresh = parts.algo.init(torch.Generator().manual_seed(parts.root.seed))
    return {name: p.to(parts.device) for name, p in fresh.items()}


def draw(parts: Parts) -> Callable[[], Any]:
    """Meta-batches by metarun's sampler, one after another; the first is the same for every system."""
    generator = torch.Generator(parts.device).manual_seed(0)
    return lambda: parts.sampler.gather(parts.sampler.draw(parts.train.tasks, generator))
