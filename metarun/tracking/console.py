"""What the person at the terminal sees: a header, a live bar or plain lines, and the final table."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from metarun.engine.progress import DRAW_EVERY, LINE_EVERY, Meter, bars_on, clock, standard_output
from metarun.metrics import by_step, cell, telling, title, word

SILENCE = 30.0  # seconds of training without a line in a file or a pipe
LONG = 1800.0  # seconds of training that one should know of beforehand
SHORTER = "Fewer train.steps or train.tasks and smaller images (data.size) shorten it, train.max_time=30m ends it"


class Console:
    """Progress on standard output; a file or a pipe gets lines without control characters."""

    def __init__(self, total_steps: int, run_dir: Path, start: int = 0, max_seconds: float = math.inf) -> None:
        """A resumed run goes on at `start`: time left is that of this session's pace."""
        self.total = total_steps
        self.run_dir = run_dir
        self.max_seconds = max_seconds
        self.rich = standard_output()
        self.utf8 = self.rich.encoding.lower().startswith("utf")
        self.progress = bars_on(self.rich)
        self.animated = not self.progress.disable
        self.task = self.progress.add_task(
            "", total=total_steps, completed=start, visible=False, words=lambda: "  ".join(self._words())
        )
        self.meter: Meter | None = None  # of work beside training
        self.ways: Mapping[str, str] = {}  # of `train` and `val`, where their accuracies are of different tasks
        self.latest: list[str] = []
        self.next_draw = 0.0
        self.next_line = 0.0
        self.silent_until = time.monotonic() + SILENCE
        self.warn_at = 0.0

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
        train = describe(overall, "train/", self.ways.get("train", ""))  # heads would not fit beside a bar
        val = describe(values, "val/", self.ways.get("val", ""))
        self.latest = train or self.latest
        due = time.monotonic() >= self.next_line or step == self.total
        if train and due:
            self.silent_until = 0.0
        self._draw(step)
        if val:
            self.say("  ".join([f"step {step:,}/{self.total:,}", "validation", *val]))

    def part(self, doing: str, done: int, total: int) -> None:
        """Note how much is done of work beside training: a validation, the meta-test."""
        self.meter = self.meter or Meter(doing, total, self.progress)
        self.meter.reach(done)
        if done >= total:
            self._end_part()

    def say(self, text: str) -> None:
        """Print a line; a bar stays below it."""
        self.rich.print(Text(self._spell(text)), soft_wrap=True)

    def table(self, result: dict[str, Any], file: Path | None = None) -> None:
        """Print the test result by adaptation step, and where to look next: in the run, or in the file that a repeated
        meta-test leaves."""
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
        home = shlex.quote(from_here(_home(self.run_dir)))
        if file:
            self.say(f"result     {from_here(file)}")
        else:
            self.say(f"run        {from_here(self.run_dir)}")
            self.say(f"curves     tensorboard --logdir {home}")
        self.say(f"compare    metarun report {home}")

    def close(self) -> None:
        """Take the bar away and leave the terminal as it was."""
        self._end_part()
        self.progress.stop()

    def _end_part(self) -> None:
        if self.meter:
            self.meter.close()
            self.meter = None

    def _draw(self, step: int) -> None:
        """Tell rich where training is; the first time is after this session's first step, which warms up."""
        now = time.monotonic()
        self.next_draw = now + DRAW_EVERY
        self.progress.update(self.task, completed=step, visible=True, refresh=True)
        self.progress.start()
        if not self.animated and now >= self.silent_until:
            self.next_line, self.silent_until = now + LINE_EVERY, now + SILENCE
            self.say(f"step {'  '.join(self._words())}")
        self._warn(now)

    def _warn(self, now: float) -> None:
        """Tell once, as soon as there is a pace to go by, of a training that will take long."""
        self.warn_at = self.warn_at or now + LINE_EVERY
        left = self.progress.tasks[0].time_remaining
        if now < self.warn_at or left is None:
            return
        self.warn_at = math.inf
        if min(left, self.max_seconds) > LONG:
            self.say(f"about {clock(min(left, self.max_seconds))} of training at this pace. {SHORTER}.")

    def _words(self) -> list[str]:
        """How far training is, what was last logged, and the time left as soon as there is a pace to go by."""
        task = self.progress.tasks[0]
        left = [] if task.time_remaining is None else [f"{clock(task.time_remaining)} left"]
        return [f"{int(task.completed):,}/{self.total:,}", *self.latest, *left]

    def _spell(self, text: str) -> str:
        """A terminal in the C locale knows ASCII only."""
        return text if self.utf8 else text.replace("±", "+-").encode("ascii", "replace").decode()


def describe(values: dict[str, float], prefix: str, ways: str = "") -> list[str]:
    """`{"train/loss": 0.5, "train/accuracy": 0.9}` -> `["loss 0.500", "accuracy 90.0%"]`, or `"5-way accuracy ..."`."""
    names = telling(tag.removeprefix(prefix) for tag in values if tag.startswith(prefix))
    told = {name: f"{ways} {name}".lstrip() if name == "accuracy" else name.replace("/", " ") for name in names}
    words = [f"{told[name]} {word(name, values[prefix + name])}" for name in names]
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
    ways = f"{protocol['ways']}-way" if protocol.get("ways", 1) != 1 else ""
    shots = f"{protocol['shots']}-shot" if protocol.get("shots") else ""
    trained, tested = str(result["data"]), str(protocol.get("test_data") or result["data"])
    words = [" ".join(filter(None, (tested, ways, shots))), f"{tasks:,} test tasks"]
    if lost := test.get("diverged"):
        words.append(f"{lost:,} of them diverged")
    if tested != trained:
        words.append(f"trained on {trained}")
    return ", ".join([*words, "mean ± 95% CI", "* = reported"])


def _home(run_dir: Path) -> Path:
    """The folder of the runs to compare: the sweep, or all of outputs/."""
    if [folder.name for folder in run_dir.parents][2:3] == ["sweeps"]:  # sweeps/<date>/<time>_<name>/<run>
        return run_dir.parent
    return next((folder for folder in run_dir.parents if folder.name == "outputs"), run_dir.parent)


def from_here(path: Path) -> str:
    """As one would type it from the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
