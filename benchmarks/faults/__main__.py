"""The random campaign: what people type and what the world does to a run, tried at random and judged.

    python -m benchmarks.faults                                   # all of it: about an hour on two cores
    python -m benchmarks.faults --kind inputs,files --count 50 --seed 7
    python -m benchmarks.faults --kind kills --seed 7 --only 12   # one case again, with what was done and said

Each case is drawn from seed, kind and number; when something happens is measured in seconds, so that a replay is the
same command at about the same moment. A case that falls short is printed with its commands, and its folder is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import torch

import metarun
from benchmarks.faults import disks, files, inputs, kills, races, ranks
from benchmarks.faults.checks import Short
from benchmarks.faults.place import ROOT, Place, Server, Shared
from metarun.engine.device import processor

KINDS: dict[str, tuple[Callable[[Place], list[Short]], int]] = {  # with how many cases a campaign has
    "kills": (kills.case, 300),
    "disk": (disks.case, 100),
    "inputs": (inputs.case, 1500),
    "races": (races.case, 60),
    "torchrun": (ranks.case, 300),
    "files": (files.case, 100),
}
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Tried:
    """One case and what became of it."""

    kind: str
    number: int
    short: list[Short]
    story: list[str]
    seconds: float


def main(argv: list[str]) -> int:
    args = options().parse_args(argv)
    kinds = args.kind.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        options().error(f"--kind {unknown[0]}: there are {', '.join(KINDS)}")
    numbers = {kind: [args.only] if args.only is not None else range(args.count or KINDS[kind][1]) for kind in kinds}
    began = time.monotonic()
    found = campaign([(kind, n) for kind in kinds for n in numbers[kind]], args.seed, args.jobs, args.only is not None)
    rows = table(found)
    print(f"{time.monotonic() - began:.0f} s in all")
    if args.only is None:
        save(args.out, argv, rows, found)
    return int(any(tried.short for tried in found))


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default=",".join(KINDS), help="which, separated by commas (default: all)")
    parser.add_argument("--count", type=int, help="cases of each kind (default: as many as a campaign has)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this case of each kind, with its story")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json", metavar="FILE.json")
    return parser


def campaign(cases: list[tuple[str, int]], seed: int, jobs: int, aloud: bool) -> list[Tried]:
    """Tries all cases, so many at a time, and prints what fell short."""
    work = Path(tempfile.mkdtemp(prefix="metarun-faults-"))
    shared, servers = Shared(work / "shared"), SimpleQueue[Server]()
    print(f"{len(cases)} cases, seed {seed}, in {work}", flush=True)
    for _ in range(jobs):
        servers.put(Server())

    def one(case: tuple[str, int]) -> Tried:
        server = servers.get()
        try:
            tried = attempt(*case, seed, server, work, shared)
        finally:
            servers.put(server)
        tell(tried, seed, aloud)
        return tried

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(one, cases))
    for _ in range(jobs):
        servers.get().close()
    if not any(tried.short for tried in found):
        shutil.rmtree(work, ignore_errors=True)
    return found


def attempt(kind: str, number: int, seed: int, server: Server, work: Path, shared: Shared) -> Tried:
    """One case in a folder of its own, which stays only if something fell short."""
    folder = work / kind / str(number)
    folder.mkdir(parents=True)
    place = Place(server, folder, shared, Random(f"{seed}/{kind}/{number}"))
    began = time.monotonic()
    try:
        short = KINDS[kind][0](place)
    except Exception:  # of the campaign itself: to be seen, and no reason to end the rest
        short = [Short("a case that the campaign can judge", traceback.format_exc())]
    if not short:
        shutil.rmtree(folder, ignore_errors=True)
    return Tried(kind, number, short, place.story, time.monotonic() - began)


def tell(tried: Tried, seed: int, aloud: bool) -> None:
    """A line for a case that went well; else all that is needed to see and to repeat it."""
    state = "FELL SHORT" if tried.short else "fine"
    tries = [line.partition("&& ")[2] for line in tried.story if line.startswith("cd ")]
    words = tries[0].partition(" metarun ")[2] or tries[0] if tries else ""
    lines = [f"{tried.kind} {tried.number}: {state}, {tried.seconds:.1f} s  {words[-150:]}"]
    if tried.short:
        lines.append(f"  again: python -m benchmarks.faults --kind {tried.kind} --seed {seed} --only {tried.number}")
    if tried.short or aloud:
        lines += [f"  {line}" for line in tried.story]
        lines += [f"  expected {short.expected}\n      came {short.came}" for short in tried.short]
    print("\n".join(lines).encode(errors="backslashreplace").decode(), flush=True)


def table(found: list[Tried]) -> list[dict[str, Any]]:
    """Prints a row for each kind, and returns them."""
    rows = []
    print(f"\n{'kind':<10}{'tried':>7}{'fine':>7}{'fell short':>12}{'seconds':>9}")
    for kind in dict.fromkeys(tried.kind for tried in found):
        own = [tried for tried in found if tried.kind == kind]
        bad = sum(bool(tried.short) for tried in own)
        seconds = round(sum(tried.seconds for tried in own))
        rows.append({"kind": kind, "tried": len(own), "fine": len(own) - bad, "short": bad, "seconds": seconds})
        print(f"{kind:<10}{len(own):>7}{len(own) - bad:>7}{bad:>12}{seconds:>9}")
    return rows


def save(out: Path, argv: list[str], rows: list[dict[str, Any]], found: list[Tried]) -> None:
    record = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.faults", *argv]),
        "machine": {
            "name": processor(torch.device("cpu")),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "metarun": metarun.__version__,
            "commit": commit(),
        },
        "rows": rows,
        "short": [
            {"kind": t.kind, "number": t.number, "short": [s._asdict() for s in t.short], "story": t.story}
            for t in found
            if t.short
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"-> {out}", flush=True)


def commit() -> str | None:
    """Of the checkout that was tried."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
