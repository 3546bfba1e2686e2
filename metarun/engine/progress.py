"""How far work that takes longer than two seconds has come: a bar on a terminal, lines in a file or a pipe."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

QUIET = 2.0  # seconds that nobody need be told of
DRAW_EVERY = 0.15  # seconds, on a terminal
LINE_EVERY = 5.0  # seconds, in a file or a pipe

Item = TypeVar("Item")


def watched(items: Iterable[Item], total: int, doing: str, size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
    """The items, while standard output tells how many of `total` are done; each counts as `size` says."""
    with closing(Meter(doing, total)) as meter:
        for item in items:
            yield item
            meter.reach(meter.done + size(item))


class Meter:
    """Tells of work until it is closed.

    It has a thread of its own, so that a single long piece of work is told of, too. Where bars are up already, it is
    one more of them: two displays on one terminal would overwrite each other.
    """

    def __init__(self, doing: str, total: int, bars: Progress | None = None) -> None:
        self.doing, self.total, self.done = doing, total, 0
        self.began = self.reached = time.monotonic()
        self.alone = bars is None
        self.bars = bars or bars_on(standard_output())
        self.bar = self.bars.add_task("", total=total, visible=False, words=self.words)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)
        self.thread.start()

    def reach(self, done: int, doing: str = "") -> None:
        """Notes how much is done, and what is done next where that is something else."""
        self.doing, self.done, self.reached = doing or self.doing, done, time.monotonic()

    def words(self) -> str:
        """`decoding images  512/2,000 (26%)  210/s  0:07 left`."""
        now, done, took = time.monotonic(), self.done, self.reached - self.began
        count = f"{self.doing}  {done:,}/{self.total:,} ({done / max(self.total, 1):.0%})"
        if not done or not took:
            return f"{count}  {clock(now - self.began)} so far"
        left = (self.total - done) * took / done - (now - self.reached)
        return f"{count}  {_rate(done / took)}  {clock(max(left, 0.0))} left"

    def close(self) -> None:
        """Takes its bar away."""
        self.over.set()
        self.thread.join()
        self.bars.remove_task(self.bar)
        self.bars.refresh()
        if self.alone:
            self.bars.stop()

    def _tell(self) -> None:
        pause = QUIET
        with suppress(OSError, ValueError):  # nobody reads any more: whoever works is told so
            while not self.over.wait(pause):
                if self.bars.disable:
                    pause = LINE_EVERY
                    self.bars.console.print(Text(self.words()), soft_wrap=True)
                else:
                    pause = DRAW_EVERY
                    self.bars.update(self.bar, completed=self.done, visible=True, refresh=True)
                    self.bars.start()


class Words(ProgressColumn):
    """What a task's own function says of it."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["words"]())


def standard_output() -> Console:
    """Whatever FORCE_COLOR says, a file or a pipe gets no control characters."""
    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        force_terminal=terminal,
        force_jupyter=False,
        width=None if terminal else 120,
        highlight=False,
        markup=False,
        emoji=False,
    )


def bars_on(console: Console) -> Progress:
    """Bars of tasks that have a field `words`, a function without arguments; disabled where nothing can be redrawn."""
    return Progress(
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
        Words(table_column=Column(no_wrap=True)),
        console=console,
        auto_refresh=False,
        transient=True,
        expand=True,
        speed_estimate_period=math.inf,  # over all draws that are kept, 1000: a validation must not upset it
        get_time=time.monotonic,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )


def _rate(per_second: float) -> str:
    """`640/s`, `1.5/s`, `25 s each`."""
    if per_second < 0.1:
        return f"{1 / per_second:.0f} s each"
    return f"{per_second:,.{0 if per_second >= 10 else 1}f}/s"


def clock(seconds: float) -> str:
    """`0:07`, `12:05`, `6:03:30`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
