"""What the four commands share: options, header, answers to mistakes, and the JSON file."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from metarun.engine.device import pick
from metarun.errors import UserError

HERE = Path(__file__).parent
BUSY = 0.5


def options(name: str, text: str | None, figure: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=text)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocator", choices=("tuned", "default"), default="tuned", help="of every system")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"{name}.json", metavar="FILE.json")
    if figure:
        parser.add_argument("--figure", type=Path, default=HERE / "figures" / f"{name}.png", metavar="FILE.png")
    return parser


def timing(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--repeats", type=int, default=5, help="pieces of each system; figures are medians")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a piece")
    return parser


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Sets the allocator, and prints and returns what the figures hold for."""
    machine.allocate(args.allocator)
    facts = {**machine.facts(pick(args.device, 0, None)), "allocator": args.allocator}
    print(
        f"{facts['name']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}, "
        f"device {facts['device']}, allocator {args.allocator} (of every system)\n"
        f"sgemm {facts['sgemm_gflops']:.0f} GFLOP/s, 1x1 convolution {facts['convolution_gflops']:.0f} GFLOP/s",
        flush=True,
    )
    if facts["load"] > BUSY:
        print(f"{facts['load']:.1f} cores are busy with other work: these figures are worth nothing")
    return facts


def save(args: argparse.Namespace, facts: dict[str, Any], rows: Any) -> None:
    record = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": facts,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"-> {args.out}", flush=True)


def answering(main: Callable[[list[str]], None]) -> None:
    """A user's mistake gets one line."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
