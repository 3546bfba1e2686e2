"""W1 under torchrun: processes of one thread each, with as many tasks for each of them or as many in all.

The efficiency of weak scaling is the rate of R ranks with R times the tasks over R times the rate of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks import command
from benchmarks.workloads import WORKLOADS
from metarun.errors import UserError

TASKS = 32


class Setup(NamedTuple):
    ranks: int
    threads: int  # of each rank
    tasks: int  # of a meta-step, all ranks together


def main(argv: list[str]) -> None:
    parser = command.options("ranks", __doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="of a run; the second half is timed")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each setup; figures are medians")
    args = parser.parse_args(argv)
    facts = command.begin(args)
    one = Setup(1, 1, TASKS)
    weak, strong = one._replace(ranks=args.ranks, tasks=args.ranks * TASKS), one._replace(ranks=args.ranks)
    threads = one._replace(threads=args.ranks)
    rates: dict[Setup, list[float]] = {setup: [] for setup in (one, weak, strong, threads)}
    for _ in range(args.repeats):
        for setup, found in rates.items():
            found.append(rate(setup, args.device, args.steps))
    middle = {setup: median(found) for setup, found in rates.items()}
    for setup, value in middle.items():
        print(f"{setup.ranks} ranks of {setup.threads} threads, {setup.tasks} tasks a step: {value:.1f} tasks/s")
    efficiency = middle[weak] / (args.ranks * middle[one])
    print(f"weak scaling to {args.ranks} ranks: {efficiency:.1%}")
    print(
        f"{args.ranks} ranks of one thread against one of {args.ranks} threads: {middle[strong] / middle[threads]:.2f}x"
    )
    rows: list[dict[str, Any]] = [{**setup._asdict(), "tasks_per_s": found} for setup, found in rates.items()]
    command.save(args, facts, [*rows, {"weak_scaling": efficiency}])


def rate(setup: Setup, device: str, steps: int) -> float:
    """Tasks per second of a whole run, over the second half of its steps."""
    short = [f"train.steps={steps}", f"train.log_every={steps // 2}", "val.tasks=2", "test.tasks=2"]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setup.ranks}", "-m", "metarun"]
    with TemporaryDirectory() as folder:
        work = [*start, *WORKLOADS["W1"].overrides, f"train.tasks={setup.tasks}", *short, f"device={device}"]
        threads = {**os.environ, "OMP_NUM_THREADS": str(setup.threads)}
        work += ["parallel=vmap", f"hydra.run.dir={folder}"]
        done = subprocess.run([sys.executable, *work], env=threads, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"a run with {setup.ranks} ranks failed: {done.stderr.strip().splitlines()[-1]}")
        cost = json.loads((Path(folder) / "result.json").read_text())["cost"]
    assert cost["ranks"] == setup.ranks
    return cost["tasks_per_s"]


if __name__ == "__main__":
    command.answering(main)
