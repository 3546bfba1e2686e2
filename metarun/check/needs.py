"""What a planned run will need, from a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from metarun.engine.device import peak_memory_mb
from metarun.engine.mapping import Parallel
from metarun.evaluate import Exam, evaluate
from metarun.loop import Loop, Window
from metarun.state import State
from metarun.types import Algorithm

STEPS, SECONDS = 5, 10.0  # at most, after the first
TASKS = 16  # to be judged on


@dataclass(frozen=True)
class Needs:
    """Seconds and memory. A run with patience may end sooner."""

    step: float
    steps: int  # that there is time for
    training: float
    validation: float
    validations: int
    test: float
    memory: float  # MB, at its peak
    parallel: Parallel

    @property
    def seconds(self) -> float:
        return self.training + self.validation + self.test


def needed(
    loop: Loop, state: State, tested: Algorithm, val: Exam, test: Exam, mapping: Callable[[Parallel | None], Parallel]
) -> Needs:
    """Takes a few steps of the run and judges a few of its tasks, mapped by what `mapping` makes of that of steps."""
    step, plan = _step(loop, state), loop.plan
    assert state.parallel is not None
    one, last = (_judged(tested, state, exam, mapping(state.parallel), loop.device) for exam in (val, test))
    of_each = step + one / plan.val_every
    steps = min(plan.steps, max(1, int(min(plan.max_seconds / of_each, plan.steps))))
    validations = -(-steps // plan.val_every)
    memory = peak_memory_mb(loop.device)
    return Needs(step, steps, steps * step, validations * one, validations, last, memory, state.parallel)


def _step(loop: Loop, state: State) -> float:
    """Seconds of a step, but for the first, which also chooses a mapping, compiles or warms up."""
    samples, window, times = loop.samples(state.step), Window(), list[float]()
    most = min(1 + STEPS, loop.plan.steps)
    try:
        while len(times) < most and sum(times[1:]) < SECONDS:
            since = time.perf_counter()
            loop.step(state, samples, window)
            _wait(loop.device)
            times.append(time.perf_counter() - since)
    finally:
        samples.close()
    return median(times[1:] or times)


def _judged(algo: Algorithm, state: State, exam: Exam, parallel: Parallel, device: torch.device) -> float:
    """Seconds of a whole exam, from some of its tasks."""
    total = len(next(iter(exam.draw.values())))
    some = Exam(exam.sampler, {name: lots[:TASKS] for name, lots in exam.draw.items()}, exam.steps, exam.marks)
    since = time.perf_counter()
    evaluate(algo, state.params, some, parallel, say=lambda text: None)
    _wait(device)
    return (time.perf_counter() - since) * total / min(TASKS, total)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
