"""What the person at the terminal sees: a header, a live bar or plain lines, and the final table."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console as Rich
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

DRAW_EVERY = 0.15  # seconds, on a terminal
LINE_EVERY = 5.0  # seconds, in a file or a pipe
SHOWN = ("loss", "accuracy", "mse")


class Console:
    """Progress on standard output; a file or a pipe gets lines without control characters."""

    def __init__(self, total_steps: int, run_dir: Path) -> None:
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
        self.live: Live | None = None
        self.animated = terminal and not self.rich.is_dumb_terminal
        self.utf8 = self.rich.encoding.lower().startswith("utf")
        self.start = 0
        self.now = 0
        self.started: float | None = None  # when this session's first step was done: it pays for warming up
        self.next_draw = 0.0
        self.next_line = 0.0
        self.latest: list[str] = []

    def header(self, facts: dict[str, str]) -> None:
        """Say what is about to be trained."""
        width = max(map(len, facts), default=0)
        for name, fact in facts.items():
            line = Text.assemble((name.ljust(width), "dim"), "  ", self._spell(fact))
            self.rich.print(line, soft_wrap=True)
        self.rich.print()

    def resume(self, step: int) -> None:
        """Go on from `step`: the bar starts there, and the time left counts from there."""
        self.start = self.now = step
        self.started = None
        self.next_draw = 0.0

    def step(self, step: int) -> None:
        """Note that a meta-step is done; nearly always that is all."""
        self.now = step
        now = time.monotonic()
        if now < self.next_draw:
            return
        self.next_draw = now + DRAW_EVERY
        if self.started is None:
            self.start, self.started = step, now
        if self.animated:
            self._draw()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show what was logged: in the bar or as a line; a validation always gets its own line."""
        self.now = step
        train = describe(values, "train/")
        self.latest = train or self.latest
        val = describe(values, "val/")
        place = f"step {step:,}/{self.total:,}"
        due = time.monotonic() >= self.next_line or step == self.total
        if train and due and not self.animated:
            self.next_line = time.monotonic() + LINE_EVERY
            self.say("  ".join([place, *train, *self._time_left()]))
        if val:
            self.say("  ".join([place, "validation", *val]))
        if self.animated:
            self._draw()

    def say(self, text: str) -> None:
        """Print a line; a bar stays below it."""
        self.rich.print(Text(self._spell(text)), soft_wrap=True)

    def table(self, result: dict[str, Any]) -> None:
        """Print the test result by adaptation step, and where to look next."""
        self._stop()
        if result.get("test"):
            self.rich.print(_test_table(result, "±" if self.utf8 else "+-"))
            self.say(_caption(result))
            self.rich.print()
        home = shlex.quote(_shorten(_home(self.run_dir)))
        self.say(f"run        {_shorten(self.run_dir)}")
        self.say(f"curves     tensorboard --logdir {home}")
        self.say(f"compare    metarun report {home}")

    def close(self) -> None:
        """Take the bar away and leave the terminal as it was."""
        self._stop()

    def _draw(self) -> None:
        if self.live is None:
            self.live = Live(console=self.rich, auto_refresh=False, transient=True)
            self.live.start()
        self.live.update(self._bar(), refresh=True)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _bar(self) -> Table:
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(ratio=1, min_width=8)
        cells = [f"{self.now:,}/{self.total:,}", *self.latest, *self._time_left()]
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(ProgressBar(total=self.total, completed=self.now), *map(Text, cells))
        return row

    def _time_left(self) -> list[str]:
        if self.started is None or self.now <= self.start:
            return []
        pace = (time.monotonic() - self.started) / (self.now - self.start)
        return [clock(pace * (self.total - self.now)) + " left"]

    def _spell(self, text: str) -> str:
        """A terminal in the C locale knows ASCII only."""
        return text if self.utf8 else text.replace("±", "+-").encode("ascii", "replace").decode()


def describe(values: dict[str, float], prefix: str) -> list[str]:
    """`{"train/loss": 0.5, "train/accuracy": 0.9}` -> `["loss 0.500", "accuracy 90.0%"]`."""
    words = []
    for tag, value in values.items():
        name = tag.removeprefix(prefix)
        twice = name == "loss" and f"{prefix}mse" in values
        if tag.startswith(prefix) and name.rpartition("/")[2] in SHOWN and not twice:
            words.append(f"{name.replace('/', ' ')} {_show(name, value)}")
    speed = values.get(f"{prefix}tasks_per_s")
    return words + ([f"{speed:,.0f} tasks/s"] if speed is not None else [])


def clock(seconds: float) -> str:
    """`4:05`, `1:02:03`, `2d 03:04`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _show(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def _test_table(result: dict[str, Any], plus_minus: str) -> Table:
    """One row for each number of adaptation steps; the row that the protocol names stands out."""
    test = result["test"]
    rows = test.get("by_step") or [test]
    names = list(_metrics(rows[0]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("adaptation steps", justify="right")
    for name in names:
        table.add_column(name + (" (%)" if name.endswith("accuracy") else ""), justify="right")
    chosen = result.get("protocol", {}).get("adapt_steps")
    for row in rows:
        mine = row.get("step") == chosen and chosen is not None
        metrics = _metrics(row)
        cells = [_mean_ci(name, metrics[name], plus_minus) if name in metrics else "" for name in names]
        label = ("* " if mine else "") + str(row.get("step", ""))
        table.add_row(label, *cells, style="bold" if mine else None)
    return table


def _metrics(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> {mean, ci95, tasks} of one row; of several heads each under its own name, the loss last."""
    found = {name: value for name, value in row.items() if isinstance(value, dict) and "mean" in value}
    if "mse" in found:  # it is the loss
        found.pop("loss", None)
    for head, metrics in row.get("heads", {}).items():
        found |= {f"{head} {name}": value for name, value in metrics.items() if "mean" in value}
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("loss")))


def _mean_ci(name: str, metric: dict[str, Any], plus_minus: str) -> str:
    scale, digits = (100, ".2f") if name.endswith("accuracy") else (1, ".4f")
    known = [value for value in (metric["mean"], metric.get("ci95")) if value is not None and math.isfinite(value)]
    return f" {plus_minus} ".join(f"{scale * value:{digits}}" for value in known) or "nan"


def _caption(result: dict[str, Any]) -> str:
    """What the numbers are means of."""
    test, protocol = result["test"], result.get("protocol", {})
    metrics = _metrics((test.get("by_step") or [test])[0])
    tasks = next((metric["tasks"] for metric in metrics.values() if "tasks" in metric), None)
    ways = f"{protocol['ways']}-way" if protocol.get("ways", 1) > 1 else ""
    shots = f"{protocol['shots']}-shot" if protocol.get("shots") else ""
    words = [" ".join(filter(None, (str(result.get("data", "")), ways, shots)))]
    words += [f"{tasks:,} test tasks"] if tasks else []
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
