"""Which way of mapping tasks is fastest here: measured on the first meta-batch, not believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import torch

from metarun.engine.mapping import Parallel
from metarun.engine.progress import Meter
from metarun.errors import UserError
from metarun.types import MetaGradient, Params

Result = TypeVar("Result")
REPEATS = 2
SLOW = 3.0  # seconds


def named(mode: str, chunk: int | None, tasks: int, unrolled: bool = False) -> Parallel:
    """The mapping that a config names."""
    if mode == "loop" and unrolled:
        raise UserError("parallel=loop with compile=true would compile every task anew. Take parallel=vmap or auto.")
    if mode == "loop":
        return Parallel("loop", 1)
    return Parallel("vmap", min(chunk or tasks, tasks))


def fastest(
    algo: MetaGradient, params: Params, sample: Any, candidates: Sequence[Parallel], device: torch.device
) -> tuple[Parallel, dict[str, float]]:
    """The fastest candidate and each one's seconds; a candidate that runs out of memory ends the search."""
    seconds: dict[Parallel, float] = {}
    with closing(Meter("", len(candidates))) as meter:
        for candidate in candidates:
            meter.reach(len(seconds), f"parallel: measuring {candidate}")
            try:
                seconds[candidate] = _seconds(partial(algo.meta_grad, params, sample, candidate), device)
            except torch.OutOfMemoryError:
                break
            if seconds[candidate] > 1.2 * min(seconds.values()):
                break
    if not seconds:
        return Parallel("loop", 1), {}
    return min(seconds, key=seconds.__getitem__), {str(c): s for c, s in seconds.items()}


def candidates(tasks: int, chunk: int | None, device: torch.device, unrolled: bool = False) -> list[Parallel]:
    """From the least memory to the most; an accelerator is launch-bound, so it need not try small chunks.

    What is compiled is unrolled, so it is to consist of a few chunks only.
    """
    chunks = sorted({min(c, tasks) for c in (4, 8, 16, 32, tasks)}) if chunk is None else [min(chunk, tasks)]
    if device.type != "cpu" and chunk is None:
        chunks = sorted({-(-tasks // 4), tasks})
    if unrolled:
        return [Parallel("vmap", c) for c in chunks if c in (chunk, tasks) or 4 * c >= tasks]
    return [Parallel("loop", 1), *(Parallel("vmap", c) for c in chunks)]


def within_memory(
    work: Callable[[Parallel], Result], parallel: Parallel, say: Callable[[str], None]
) -> tuple[Result, Parallel]:
    """What work(parallel) returns, and the mapping it went with: the chunk halves until memory suffices."""
    while True:
        try:
            return work(parallel), parallel
        except torch.OutOfMemoryError as error:
            smaller = halved(parallel)
            if smaller is None:
                raise UserError(
                    "out of memory with one task at a time. Lower data.queries, algo.inner_steps or the backbone."
                ) from error
            say(f"out of memory with {parallel}: going on with {smaller}")
            parallel = smaller


def halved(parallel: Parallel) -> Parallel | None:
    """What to try after running out of memory; None where one task at a time is already too much."""
    if parallel.mode == "loop":
        return None
    return Parallel("vmap", parallel.chunk // 2) if parallel.chunk > 1 else Parallel("loop", 1)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The best of a few runs after a warm-up, which also pays for the memory that the others find; fewer where slow."""
    times: list[float] = []
    while len(times) <= REPEATS and not (len(times) > 1 and times[0] > SLOW):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
