"""Peak memory against tasks at a fixed chunk and against inner steps, and what 10,000 steps leave behind."""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from benchmarks import command, machine
from benchmarks.figure import Curve, draw
from benchmarks.machine import resident_mb
from benchmarks.measure import alone, seconds
from benchmarks.systems import SYSTEMS
from benchmarks.watched import watched
from benchmarks.workloads import ON_NOISE, WORKLOADS
from metarun.engine.device import peak_memory_mb

CHUNK = 4
TASKS = [4, 8, 16, 32, 64]
INNER_STEPS = [1, 2, 4, 8, 16]
BASE = [*ON_NOISE, f"chunk={CHUNK}"]
LARGE_QUERY = ["data.queries=15"]  # activations that stand out from the size of torch itself
LARGE_SUPPORT = ["data.shots=10", "data.queries=1", f"train.tasks={2 * CHUNK}"]


class Cost(NamedTuple):
    peak_mb: float
    step_s: float


def main(argv: list[str]) -> None:
    parser = command.options("memory", __doc__, figure=True)
    parser.add_argument("--steps", type=int, default=10_000, help="of the search for leaks")
    args = parser.parse_args(argv)
    facts = command.begin(args)
    costs = {(f"chunk {CHUNK}", "train.tasks"): along("train.tasks", TASKS, LARGE_QUERY, args)}
    for label, remat in (("all kept", "false"), ("algo.remat=true", "true")):
        costs[label, "algo.inner_steps"] = along(
            "algo.inner_steps", INNER_STEPS, [*LARGE_SUPPORT, f"algo.remat={remat}"], args
        )
    left = leak(args)
    sizes = {"train.tasks": TASKS, "algo.inner_steps": INNER_STEPS}
    curves = [Curve(axis, label, sizes[axis], [c.peak_mb for c in found]) for (label, axis), found in costs.items()]
    draw(curves, "peak MB", False, args.figure)
    rows = [
        {"label": label, "axis": axis, "sizes": sizes[axis], "costs": [cost._asdict() for cost in found]}
        for (label, axis), found in costs.items()
    ]
    command.save(args, facts, [*rows, left])


def along(axis: str, sizes: list[int], extra: list[str], args: argparse.Namespace) -> list[Cost]:
    """Peak memory and seconds per meta-step at every size, each in a process of its own."""
    overrides = [*BASE, *extra, f"device={args.device}"]
    found = [alone(cost, [*overrides, f"{axis}={size}"], args.allocator) for size in sizes]
    points = ", ".join(f"{size}: {c.peak_mb:.0f} ({c.step_s:.2f} s)" for size, c in zip(sizes, found, strict=True))
    print(f"{' '.join(extra)}: peak MB (and a meta-step) by {axis}: {points}", flush=True)
    return found


def cost(overrides: list[str], allocator: str) -> Cost:
    """To be called in a process of its own."""
    machine.allocate(allocator)
    system = SYSTEMS["vmap"](overrides)
    system.steps(1)
    taken = [seconds(partial(system.steps, 1), system.device) for _ in range(5)]
    return Cost(peak_memory_mb(system.device), median(taken))


def leak(args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory at the quarters of a long training on sinusoids, watched by every tracker."""
    marks = [1, *(1 + args.steps * quarter // 4 for quarter in (1, 2, 3, 4))]
    resident = []
    with watched([*WORKLOADS["W5"].overrides, f"device={args.device}"], args.steps) as session:
        for mark in marks:
            session.steps(mark - session.state.step)
            resident.append(resident_mb(session.parts.device))
    print(f"W5: resident MB by step: {', '.join(f'{m:,}: {mb:.1f}' for m, mb in zip(marks, resident, strict=True))}")
    return {"steps": marks, "resident_mb": resident}


if __name__ == "__main__":
    command.answering(main)
