"""Peak memory against tasks at a fixed chunk and against inner steps, and what 10,000 steps leave behind."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import command
from benchmarks.figure import Curve, draw
from benchmarks.machine import resident_mb
from benchmarks.measure import alone
from benchmarks.systems import fresh
from benchmarks.watched import watched
from benchmarks.workloads import ON_NOISE, WORKLOADS, config

CHUNK = 4
TASKS = [4, 8, 16, 32, 64]
INNER_STEPS = [1, 2, 4, 8, 16]
BASE = [*ON_NOISE, "data.queries=15", f"chunk={CHUNK}"]  # its activations stand out from the size of torch itself


def main(argv: list[str]) -> None:
    parser = command.options("memory", __doc__, figure=True)
    parser.add_argument("--steps", type=int, default=10_000, help="of the search for leaks")
    args = parser.parse_args(argv)
    facts = command.begin(args)
    curves = [peaks(f"chunk {CHUNK}", "train.tasks", TASKS, [], args)]
    remat = ["algo.remat=false", "algo.remat=true"] if "remat" in config(*BASE)["algo"] else []
    for option in remat or [""]:
        label = option or "every inner step kept"
        curves.append(
            peaks(label, "algo.inner_steps", INNER_STEPS, [f"train.tasks={2 * CHUNK}", *option.split()], args)
        )
    left = leak(args)
    draw(curves, "peak MB", False, args.figure)
    command.save(args, facts, [curve._asdict() for curve in curves] + [left])


def peaks(label: str, axis: str, sizes: list[int], extra: list[str], args: argparse.Namespace) -> Curve:
    """Peak memory at every size, each in a process of its own."""
    overrides = [*BASE, *extra, f"device={args.device}"]
    found = [alone(fresh, "vmap", [*overrides, f"{axis}={size}"], args.allocator).peak_mb for size in sizes]
    points = ", ".join(f"{size}: {mb:.0f}" for size, mb in zip(sizes, found, strict=True))
    print(f"{label}: peak MB by {axis}: {points} (last / first: {found[-1] / found[0]:.2f})", flush=True)
    return Curve(axis, label, sizes, found)


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
