"""Of processes that want one lock, one has it; and a holder that is killed leaves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.engine.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from metarun.engine.lock import locked
with locked(Path(sys.argv[1]), lambda holder: print("busy", holder, flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


def _process(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _refused(holder: str) -> None:
    raise BlockingIOError(holder)


def test_the_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with _process(tmp_path / "deep" / "lock") as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        told = pytest.raises(BlockingIOError, match=rf"process {holder.pid} on \S+ since 20")
        with told, locked(tmp_path / "deep" / "lock", _refused):
            pass
        holder.communicate("")


def test_who_waits_has_its_turn_when_the_holder_is_done(tmp_path: Path) -> None:
    with _process(tmp_path / "lock") as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        with _process(tmp_path / "lock") as second:
            assert second.stdout and second.stdout.readline().startswith(f"busy process {first.pid} on ")
            first.communicate("")
            assert second.stdout.readline() == "held\n"
            second.communicate("")


def test_a_killed_holder_stops_nobody(tmp_path: Path) -> None:
    with _process(tmp_path / "lock") as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with locked(tmp_path / "lock", _refused):
        pass
    assert [*tmp_path.iterdir()] == []


def test_of_many_processes_one_at_a_time_has_the_lock(tmp_path: Path) -> None:
    """Each adds one to a number in a file, by reading it and then writing it: together they would lose some."""
    script = """
import sys
from pathlib import Path
from metarun.engine.lock import locked
number = Path(sys.argv[1]) / "number"
for _ in range(200):
    with locked(Path(sys.argv[1]) / "lock", lambda holder: None):
        number.write_text(str(int(number.read_text()) + 1))
"""
    (tmp_path / "number").write_text("0")
    several = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert (tmp_path / "number").read_text() == "800"
