"""Tasks per second, seconds to the first step and peak memory of metarun and of what else one would use.

All systems of a workload are timed in one run, in turns; figures are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from statistics import median
from typing import Any

import torch

from benchmarks import command
from benchmarks.measure import alone, in_turns, repeated
from benchmarks.systems import SYSTEMS, Fresh, Unavailable, flops, fresh
from benchmarks.workloads import WORKLOADS, chosen
from metarun.errors import UserError

PARTS = ("end_to_end", "compute")
HEAD = f"  {'system':<12}{'end to end':>12}{'x plain':>9}{'compute':>10}{'x plain':>9}{'of peak':>9}"
HEAD += f"{'first step':>12}{'memory':>10}  mapping"


def main(argv: list[str]) -> None:
    parser = command.timing(command.options("throughput", __doc__))
    parser.add_argument("--workloads", default=",".join(WORKLOADS), metavar="W1,W2")
    parser.add_argument("--systems", default=",".join(SYSTEMS), metavar="plain,auto")
    args = parser.parse_args(argv)
    names = chosen(args.workloads, WORKLOADS, "--workloads")
    systems = chosen(args.systems, SYSTEMS, "--systems")
    facts = command.begin(args)
    print("tasks per second; every system samples by metarun's sampler, which favours the others")
    rows: list[dict[str, Any]] = []
    for name in names:
        print(f"\n{name}  {WORKLOADS[name].text}", flush=True)
        if WORKLOADS[name].gpu_only and args.device != "cuda":
            print("  skipped: it needs --device cuda")
            continue
        rows += measured(name, systems, args, 1e9 * facts["peak_gflops"])
        command.save(args, facts, rows)
        if args.device == "cuda":
            torch.cuda.empty_cache()


def measured(name: str, systems: list[str], args: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """The rows of one workload."""
    overrides = [*WORKLOADS[name].overrides, f"device={args.device}"]
    starts: dict[str, Fresh] = {}
    for system in systems:
        try:
            starts[system] = alone(fresh, system, overrides, args.allocator)
        except (Unavailable, UserError) as reason:
            print(f"  {system}: skipped: {reason}", flush=True)
        except BrokenProcessPool:
            print(f"  {system}: skipped: its process was killed, probably for its memory", flush=True)
    built = {system: SYSTEMS[system](overrides) for system in starts}
    if not built:
        return []
    pieces: dict[tuple[str, str], Callable[[int], Any]] = {}
    for system, made in built.items():
        pieces |= {(system, "end_to_end"): made.steps, (system, "compute"): repeated(made.meta_grad)}
    taken = in_turns(pieces, args.repeats, args.seconds, next(iter(built.values())).device)
    operations = flops(overrides)
    print(HEAD)
    rows = [
        {
            "workload": name,
            "system": system,
            "tasks": made.tasks,
            "mapping": made.mapping(),
            **starts[system]._asdict(),
            "flops": operations,
            "of_peak": operations / median(taken[system, "compute"]) / peak,
            **{f"{part}_s": taken[system, part] for part in PARTS},
            **{f"{part}_tasks_per_s": made.tasks / median(taken[system, part]) for part in PARTS},
            **{f"{part}_x_plain": _times_plain(taken, system, part) for part in PARTS},
        }
        for system, made in built.items()
    ]
    for row in rows:
        print(line(row), flush=True)
    return rows


def _times_plain(taken: dict[tuple[str, str], list[float]], system: str, part: str) -> float | None:
    if ("plain", part) not in taken:
        return None
    return median(taken["plain", part]) / median(taken[system, part])


def line(row: dict[str, Any]) -> str:
    times = {part: "" if (x := row[f"{part}_x_plain"]) is None else f"{x:.2f}" for part in PARTS}
    return (
        f"  {row['system']:<12}{row['end_to_end_tasks_per_s']:>12.1f}{times['end_to_end']:>9}"
        f"{row['compute_tasks_per_s']:>10.1f}{times['compute']:>9}{row['of_peak']:>9.1%}"
        f"{row['first_s']:>10.2f} s{row['peak_mb']:>7.0f} MB  {row['mapping']}"
    )


if __name__ == "__main__":
    command.answering(main)
