"""Progress: nothing of quick work, lines in a pipe, a bar on a terminal that leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pytest

from metarun.engine import progress
from metarun.engine.progress import Meter, bars_on, clock, standard_output, watched


@dataclass
class Written:
    """What was written to standard output so far, at which one can wait."""

    read: Callable[[], str]
    text: str = ""

    def wait_for(self, wanted: str) -> None:
        deadline = time.monotonic() + 30
        while wanted not in self.text:
            self.text += self.read()
            assert time.monotonic() < deadline, f"{wanted} is not in {self.text[:1000]}"
            time.sleep(0.001)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Written:
    """Whoever works is told of at once, and often."""
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    return Written(lambda: capsys.readouterr().out)


def on_terminal(monkeypatch: pytest.MonkeyPatch, work: Callable[[Written], None]) -> str:
    """What work(written) leaves on a terminal, control characters included."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("QUIET", "DRAW_EVERY"):
        monkeypatch.setattr(progress, name, 0.001)
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)

    def read() -> str:
        try:
            return os.read(ours, 65536).decode(errors="ignore")
        except BlockingIOError:
            return ""

    written = Written(read)
    with os.fdopen(theirs, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        work(written)
        while more := read():
            written.text += more
    os.close(ours)
    return written.text


def test_quick_work_says_nothing_and_all_items_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(watched(iter("abc"), 3, "counting")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_a_pipe_gets_lines_that_count_what_is_done(written: Written) -> None:
    told = iter(["counting  0/4 (0%)", "counting  2/4 (50%)"])
    for _ in watched(["ab", "cd"], 4, "counting", len):
        written.wait_for(next(told))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", written.text)


def test_work_of_a_single_long_item_is_told_of(written: Written) -> None:
    def slow() -> None:
        written.wait_for("waiting  0/1 (0%)  0:00 so far\nwaiting  0/1 (0%)")

    assert list(watched((slow() for _ in range(1)), 1, "waiting")) == [None]


def test_what_is_told_is_count_share_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with closing(Meter("decoding images", 2048)) as meter:
        now = 102.0
        assert meter.words() == "decoding images  0/2,048 (0%)  0:02 so far"
        meter.reach(512)
        assert meter.words() == "decoding images  512/2,048 (25%)  256/s  0:06 left"
        now = 104.0  # nothing new: the pace is that of what is done, and the time left goes by
        assert meter.words() == "decoding images  512/2,048 (25%)  256/s  0:04 left"
        now = 442.0
        meter.reach(513, "checking images")
        assert meter.words() == "checking images  513/2,048 (25%)  1.5/s  17:03 left"


@pytest.mark.parametrize(("rate", "told"), [(1234.5, "1,234/s"), (1.46, "1.5/s"), (0.04, "25 s each")])
def test_a_rate_is_told_with_what_can_be_read_of_it(rate: float, told: str) -> None:
    assert progress._rate(rate) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0:00"), (7, "0:07"), (725, "12:05"), (21810, "6:03:30")])
def test_a_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


def test_however_work_ends_nobody_tells_of_it_any_more() -> None:
    def failing() -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        for _ in watched(range(3), 3, "counting"):
            failing()
    with pytest.raises(KeyboardInterrupt):
        list(watched((failing() for _ in range(3)), 3, "counting"))
    for _ in watched(range(3), 3, "counting"):
        break
    assert threading.active_count() == before


def test_a_reader_who_went_away_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    errors = []
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        with closing(Meter("counting", 3)) as meter:
            meter.thread.join()
    assert errors == []


def test_a_terminal_shows_a_bar_and_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(written: Written) -> None:
        for item in watched(range(2), 2, "counting"):
            written.wait_for(f"counting  {item}/2")

    seen = on_terminal(monkeypatch, work)
    assert "━" in seen and seen.rindex("\x1b[?25h") > seen.rindex("counting")


def test_where_a_bar_is_up_the_work_is_one_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(written: Written) -> None:
        bars = bars_on(standard_output())
        bars.add_task("", total=9, words=lambda: "training")
        bars.start()
        with closing(Meter("validation", 6, bars)) as meter:
            meter.reach(3)
            written.wait_for("validation  3/6 (50%)")
        assert bars.live.is_started and len(bars.tasks) == 1
        bars.stop()

    seen = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", on_terminal(monkeypatch, work))
    both = next(part for part in seen.split("training") if "validation" in part)
    assert both.index("\n") < both.index("validation")  # a row each
