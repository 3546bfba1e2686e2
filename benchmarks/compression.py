"""What finished runs reached, beside how large and how fast their networks are.

python -m benchmarks.compression runs/teacher runs/alone runs/taught

A network is what its test uses: the trunk, and an output layer for the tasks that were tested. Its size is that of its
parameters in 32 bits. An image's time is the median of several pieces, on one core, of one image by itself and of an
image of a batch; networks take turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks import command
from benchmarks.measure import in_turns, repeated
from metarun.cli.trust import check_targets
from metarun.errors import UserError
from metarun.metrics import cell, title
from metarun.pretrained import network, opened
from metarun.report.runs import Run, find
from metarun.types import Head

BATCH = 100
CPU = torch.device("cpu")


class Row(NamedTuple):
    """A run's network."""

    run: Run
    parameters: int
    work: dict[int, Callable[[], Any]]  # by the number of images: to predict so many


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.compression", description=__doc__)
    parser.add_argument("folders", metavar="RUN_DIR", nargs="+", type=Path)
    command.timing(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [_row(folder) for folder in args.folders]
    pieces = {(i, images): repeated(row.work[images]) for i, row in enumerate(rows) for images in row.work}
    with torch.inference_mode():
        taken = in_turns(pieces, args.repeats, args.seconds, CPU)
    print(f"{'run':<24}{title(rows[0].run.metric):>20}{'parameters':>12}{'kB':>9}{'ms, one':>10}{f'ms of {BATCH}':>10}")
    for i, row in enumerate(rows):
        one, many = (1000 * median(taken[i, images]) / images for images in (1, BATCH))
        score = cell(row.run.metric, row.run.test.mean, row.run.test.ci95)
        size = 4 * row.parameters / 1000
        print(f"{row.run.folder.name:<24}{score:>20}{row.parameters:>12,}{size:>9,.1f}{one:>10.3f}{many:>10.3f}")


def _row(folder: Path) -> Row:
    run = next((run for run in find([folder]) if isinstance(run, Run) and run.folder == folder and not run.again), None)
    if run is None:
        raise UserError(f"{folder} holds no finished run. Name the directory of one.")
    told = opened(folder, str(folder))["run"]
    check_targets({"backbone": told["config"]["backbone"]}, None, [os.getcwd()], str(folder))
    heads = {name: Head(kind, size) for name, (kind, size) in told["heads"].items()}
    net = network(told, heads, f"{folder}: backbone")
    params = net.init(torch.Generator().manual_seed(0))
    images = torch.rand(BATCH, *told["shape"], generator=torch.Generator().manual_seed(0))
    work: dict[int, Callable[[], Any]] = {count: partial(net, params, images[:count]) for count in (1, BATCH)}
    return Row(run, sum(p.numel() for p in params.values()), work)


if __name__ == "__main__":
    command.answering(main)
