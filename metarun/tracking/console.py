"""What the person at the terminal sees: a header, a live bar or plain lines, and the final table."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from metarun.metrics import by_step, cell, telling, title, word

DRAW_EVERY = 0.15  # seconds, on a terminal
LINE_EVERY = 5.0  # seconds, in a file or a pipe


class Console:
    """Progress on standard output; a file or a pipe gets lines without control characters."""

    def __init__(self, total_steps: int, run_dir: Path, start: int = 0) -> None:
        """A resumed run goes on at `start`: time left is that of this session's pace."""
        self.total = total_steps
        self.run_dir = run_dir
        terminal = sys.stdout.isatty()
        self.rich = Rich(
            file=sys.stdout,
            force_terminal=terminal,  # whatever FORCE_COLOR says, a log file stays plain
            force_jupyter=False,
            width=None if terminal else 120,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.animated = terminal and not self.rich.is_dumb_terminal
        self.utf8 = self.rich.encoding.lower().startswith("utf")
        self.left = TimeRemainingColumn(compact=True)
        self.progress = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TextColumn("{task.fields[latest]}", markup=False),
            self.left,
            "left",
            console=self.rich,
            auto_refresh=False,
            transient=True,
            expand=True,
            speed_estimate_period=math.inf,  # over all draws that are kept, 1000: a validation must not upset it
            get_time=time.monotonic,
            disable=not self.animated,
        )
        self.task = self.progress.add_task("", total=total_steps, completed=start, latest="")
        self.latest = ""
        self.next_draw = 0.0
        self.next_line = 0.0

    def header(self, facts: dict[str, str]) -> None:
        """Say what is about to be trained."""
        width = max(map(len, facts), default=0)
        for name, fact in facts.items():
            line = Text.assemble((name.ljust(width), "dim"), "  ", self._spell(fact))
            self.rich.print(line, soft_wrap=True)
        self.rich.print()

    def step(self, step: int) -> None:
        """Note that a meta-step is done; nearly always there is nothing to draw yet."""
        if time.monotonic() >= self.next_draw:
            self._draw(step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show what was logged: in the bar or as a line; a validation always gets its own line."""
        overall = {tag: value for tag, value in values.items() if tag.count("/") == 1}
        train, val = describe(overall, "train/"), describe(values, "val/")  # heads would not fit beside a bar
        self.latest = self._spell("  ".join(train)) if train else self.latest
        self._draw(step)
        place = f"step {step:,}/{self.total:,}"
        due = time.monotonic() >= self.next_line or step == self.total
        if train and due and not self.animated:
            self.next_line = time.monotonic() + LINE_EVERY
            self.say("  ".join([place, *train, *self._time_left()]))
        if val:
            self.say("  ".join([place, "validation", *val]))

    def say(self, text: str) -> None:
        """Print a line; a bar stays below it."""
        self.rich.print(Text(self._spell(text)), soft_wrap=True)

    def table(self, result: dict[str, Any]) -> None:
        """Print the test result by adaptation step, and where to look next."""
        self.close()
        if result.get("test"):
            self.rich.print(_test_table(result, self._spell))
            self.say(_caption(result))
            if lost := result["test"].get("diverged"):
                self.say(
                    f"warning: adaptation diverged in {lost:,} of {result['test']['tasks']:,} tasks, to outputs that "
                    "are no numbers: there every query counts as wrong, and losses are means over the other tasks."
                )
            self.rich.print()
        home = shlex.quote(_shorten(_home(self.run_dir)))
        self.say(f"run        {_shorten(self.run_dir)}")
        self.say(f"curves     tensorboard --logdir {home}")
        self.say(f"compare    metarun report {home}")

    def close(self) -> None:
        """Take the bar away and leave the terminal as it was."""
        self.progress.stop()

    def _draw(self, step: int) -> None:
        """Tell rich where training is; the first time is after this session's first step, which warms up."""
        self.next_draw = time.monotonic() + DRAW_EVERY
        self.progress.update(self.task, completed=step, refresh=True, latest=self.latest)
        self.progress.start()

    def _time_left(self) -> list[str]:
        task = self.progress.tasks[0]
        return [] if task.time_remaining is None else [f"{self.left.render(task)} left"]

    def _spell(self, text: str) -> str:
        """A terminal in the C locale knows ASCII only."""
        return text if self.utf8 else text.replace("±", "+-").encode("ascii", "replace").decode()


def describe(values: dict[str, float], prefix: str) -> list[str]:
    """`{"train/loss": 0.5, "train/accuracy": 0.9}` -> `["loss 0.500", "accuracy 90.0%"]`."""
    names = telling(tag.removeprefix(prefix) for tag in values if tag.startswith(prefix))
    words = [f"{name.replace('/', ' ')} {word(name, values[prefix + name])}" for name in names]
    speed = values.get(f"{prefix}tasks_per_s")
    return words + ([f"{speed:,.0f} tasks/s"] if speed is not None else [])


def _test_table(result: dict[str, Any], spell: Callable[[str], str]) -> Table:
    """One row for each number of adaptation steps, the reported one marked; a column for each metric, losses last."""
    rows = by_step(result["test"])
    names = sorted(telling(next(iter(rows.values()))), key=lambda name: name.endswith("loss"))
    shown = [[spell(cell(name, row[name].mean, row[name].ci95)) for name in names] for row in rows.values()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("adaptation steps", justify="right")
    for name, cells in zip(names, zip(*shown, strict=True), strict=True):
        table.add_column(spell(title(name)), justify="right", min_width=max(map(len, cells)))  # a title may wrap
    reported = max(step for step in rows if step <= result["protocol"]["adapt_steps"])
    for step, row in zip(rows, shown, strict=True):
        mark, style = ("* ", "bold") if step == reported else ("", None)
        table.add_row(f"{mark}{step}", *row, style=style)
    return table


def _caption(result: dict[str, Any]) -> str:
    """What the numbers are means of."""
    protocol = result["protocol"]
    test = result["test"]
    tasks = test.get("tasks") or max(score.tasks for row in by_step(test).values() for score in row.values())
    ways = f"{protocol['ways']}-way" if protocol.get("ways", 1) > 1 else ""
    shots = f"{protocol['shots']}-shot" if protocol.get("shots") else ""
    words = [" ".join(filter(None, (str(result["data"]), ways, shots))), f"{tasks:,} test tasks"]
    if lost := test.get("diverged"):
        words.append(f"{lost:,} of them diverged")
    return ", ".join([*words, "mean ± 95% CI", "* = reported"])


def _home(run_dir: Path) -> Path:
    """The folder of the runs to compare: the sweep, or all of outputs/."""
    if [folder.name for folder in run_dir.parents][2:3] == ["sweeps"]:  # sweeps/<date>/<time>_<name>/<run>
        return run_dir.parent
    return next((folder for folder in run_dir.parents if folder.name == "outputs"), run_dir.parent)


def _shorten(path: Path) -> str:
    """As one would type it from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
