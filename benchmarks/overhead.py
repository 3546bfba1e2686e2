"""What a run costs beside its meta-gradients: the loop, the choice of a mapping, evaluation, start-up. On W1."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from benchmarks import command
from benchmarks.measure import in_turns, repeated, seconds
from benchmarks.session import Session
from benchmarks.watched import watched
from benchmarks.workloads import WORKLOADS, chosen
from metarun.engine.ranks import ALONE
from metarun.errors import UserError
from metarun.evaluate import evaluate
from metarun.run import for_evaluation

RUN = 2500  # steps of the run that the choice of a mapping is held against
PARTS = ("meta-gradient", "sampling", "optimizer", "logging", "progress")


class Row(NamedTuple):
    what: str
    value: float
    unit: str  # s, or the share of something
    bar: str = ""


class Clock:
    """Seconds spent in named parts of a session's loop, without those of the parts that they call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.called = 0.0  # seconds of the parts that the running one has called so far

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start, earlier, self.called = time.perf_counter(), self.called, 0.0
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.spent[name] += taken - self.called
                self.called = earlier + taken

        return call

    def on(self, session: Session) -> Session:
        """The same session, with a clock on every part that its loop calls."""
        loop, timed = session.loop, self.timed
        algo: Any = SimpleNamespace(meta_grad=timed("meta-gradient", loop.algo(0).meta_grad))
        draw, gather = timed("sampling", loop.sampler.draw), timed("sampling", loop.sampler.gather)
        sampler: Any = SimpleNamespace(draw=draw, gather=gather, from_disk=loop.sampler.from_disk)
        step, log = timed("progress", loop.tracker.step), timed("logging", loop.tracker.log)
        tracker: Any = SimpleNamespace(step=step, log=log, matrix=loop.tracker.matrix, say=loop.tracker.say)
        optimizer: Any = session.state.optimizer
        optimizer.step = timed("optimizer", optimizer.step)
        timed_loop = replace(
            loop, algo=lambda step: algo, sampler=sampler, tracker=tracker, choose=timed("choosing", loop.choose)
        )
        return replace(session, loop=timed_loop)


def main(argv: list[str]) -> None:
    parser = command.timing(command.options("overhead", __doc__))
    parser.add_argument("--workload", default="W1", help="another one to try this command quickly")
    args = parser.parse_args(argv)
    (name,) = chosen(args.workload, WORKLOADS, "--workload")
    facts = command.begin(args)
    overrides = [*WORKLOADS[name].overrides, f"device={args.device}", "parallel=measure"]
    rows = [
        *training(overrides, args),
        Row("metarun --help", median(help_page() for _ in range(3)), "s", "below 1.5 s"),
        Row("from command to first meta-step", median(first_step(overrides) for _ in range(3)), "s", "below 8 s"),
    ]
    for what, value, unit, bar in rows:
        print(f"{what:<40}{f'{value:.2%}' if unit == 'share' else f'{value:.3f} s':>10}   {bar}".rstrip())
    command.save(args, facts, [row._asdict() for row in rows])


def training(overrides: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """The real loop under all trackers, in turns with the meta-gradient alone; then the meta-test."""
    clock = Clock()
    with watched(overrides, RUN) as session:
        timed = clock.on(session)
        timed.steps(1)
        choosing = clock.spent["choosing"]
        clock.spent.clear()
        taken = in_turns(
            {"loop": clock.timed("rest", timed.steps), "meta_grad": repeated(session.meta_grad)},
            args.repeats,
            args.seconds,
            session.parts.device,
        )
        device, test = session.parts.device, session.parts.test
        tasks = len(next(iter(test.draw.values())))
        tests = {
            adapted: median(seconds(partial(meta_test, session, adapted), device) for _ in range(args.repeats))
            for adapted in (1, test.steps)
        }
    step = median(taken["loop"])
    whole = sum(clock.spent.values())
    shares = {part: clock.spent[part] / whole for part in PARTS}
    return [
        Row("a meta-step of the loop", step, "s"),
        *(Row(f"  {part}", share, "share") for part, share in shares.items()),
        Row("  the rest of the loop", clock.spent["rest"] / whole, "share"),
        Row("everything but the meta-gradient", 1 - shares["meta-gradient"], "share", "below 5% on W1"),
        Row("  held against meta_grad alone", 1 - median(taken["meta_grad"]) / step, "share"),
        Row("measuring how to map tasks", choosing, "s"),
        Row(f"  of {RUN:,} steps", choosing / (RUN * step), "share", "below 2%"),
        *(Row(f"meta-test of {tasks} tasks, adapted {n}x", s, "s", "below 3 s on W1") for n, s in tests.items()),
    ]


def meta_test(session: Session, steps: int) -> None:
    parts, state = session.parts, session.state
    exam = replace(parts.test, steps=steps, marks=[steps])
    evaluate(parts.tested(0), state.params, exam, for_evaluation(state.parallel, parts.device, ALONE))


def help_page() -> float:
    work = [sys.executable, "-m", "metarun", "--help"]
    return seconds(lambda: subprocess.run(work, check=True, stdout=subprocess.DEVNULL), torch.device("cpu"))


def first_step(overrides: Sequence[str]) -> float:
    """From the command to the first line of metrics.jsonl, which is written after the first meta-step."""
    short = ("train.steps=1", "train.log_every=1", "val.tasks=2", "test.tasks=2", "test.adapt_steps=1")
    with TemporaryDirectory() as folder:
        lines = Path(folder) / "run" / "metrics.jsonl"
        work = [sys.executable, "-m", "metarun", *overrides, *short, f"hydra.run.dir={folder}/run"]
        start = time.perf_counter()
        with subprocess.Popen(work, stdout=subprocess.DEVNULL) as process:
            while not (lines.exists() and lines.stat().st_size) and process.poll() is None:
                time.sleep(0.005)
            taken = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"{' '.join(work)} failed, see above.")
    return taken


if __name__ == "__main__":
    command.answering(main)
