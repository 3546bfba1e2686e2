"""How the cost of a meta-step grows with tasks, ways, shots, inner steps and image size, around W1 on noise."""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks import command
from benchmarks.figure import Curve, draw
from benchmarks.measure import in_turns, slope
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import ON_NOISE, chosen

AXES = {
    "train.tasks": [4, 8, 16, 32, 64],
    "data.ways": [2, 5, 10, 20],
    "data.shots": [1, 2, 5, 10, 20],
    "algo.inner_steps": [1, 2, 3, 5, 8],
    "data.size": [14, 28, 56, 84],  # height and width of an image
}


def main(argv: list[str]) -> None:
    parser = command.timing(command.options("scaling", __doc__, figure=True))
    parser.add_argument("--axes", default=",".join(AXES), metavar="data.ways,data.shots")
    parser.add_argument("--systems", default="plain,auto", metavar="plain,auto")
    args = parser.parse_args(argv)
    axes = chosen(args.axes, AXES, "--axes")
    systems = chosen(args.systems, SYSTEMS, "--systems")
    facts = command.begin(args)
    curves = [curve for axis in axes for curve in along(axis, systems, args)]
    rows: list[dict[str, Any]] = [{**c._asdict(), "slope": slope(c.sizes, c.values)} for c in curves]
    draw([curve._replace(label=_named(curve)) for curve in curves], "seconds per meta-step", True, args.figure)
    command.save(args, facts, rows)


def along(axis: str, systems: list[str], args: argparse.Namespace) -> list[Curve]:
    """Seconds per meta-step at every size of one axis, all of them measured in turns."""
    points = [(system, size) for system in systems for size in AXES[axis]]
    built = {(s, size): SYSTEMS[s]([*ON_NOISE, f"{axis}={size}", f"device={args.device}"]) for s, size in points}
    pieces = {point: system.steps for point, system in built.items()}
    taken = in_turns(pieces, args.repeats, args.seconds, built[points[0]].device)
    curves = [Curve(axis, s, AXES[axis], [median(taken[s, size]) for size in AXES[axis]]) for s in systems]
    for curve in curves:
        steps = ", ".join(f"{size}: {1000 * s:.1f}" for size, s in zip(curve.sizes, curve.values, strict=True))
        print(f"{axis:<18}{_named(curve):<22}ms per meta-step at {steps}", flush=True)
    return curves


def _named(curve: Curve) -> str:
    return f"{curve.label}, slope {slope(curve.sizes, curve.values):.2f}"


if __name__ == "__main__":
    command.answering(main)
