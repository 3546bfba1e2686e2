"""What is typed reaches the file that answers it."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metarun as package
from metarun import cli
from metarun.cli import VERBS, report
from metarun.cli.main import ALOUD


def test_version_is_printed(metarun: Callable[..., Any]) -> None:
    assert metarun("--version").out == f"metarun {package.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_file_of_its_name(verb: str) -> None:
    assert Path(cli.__file__).with_name(f"{verb}.py").is_file()


def test_a_verb_stands_first(metarun: Callable[..., Any]) -> None:
    assert "usage: metarun report" in metarun("report", "--help").out
    assert "usage: metarun report" not in metarun("--help", "report").out


def test_a_bug_of_a_verb_keeps_its_traceback_and_exits_with_one(
    metarun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("outputs").mkdir()
    monkeypatch.setattr(report, "find", lambda folders: 1 / 0)
    outcome = metarun("report")
    assert outcome.code == 1 and "Traceback" in outcome.err and "metarun: ZeroDivisionError" in outcome.err


def test_help_waits_for_neither_torch_nor_hydra(tmp_path: Path) -> None:
    script = "import sys; from metarun.cli.main import main; main(); assert not {'torch', 'hydra'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", script, "--help"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_help_can_be_piped_into_what_reads_no_more_than_a_line(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m metarun --help | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_cache_that_cannot_be_written_is_told_at_the_terminal(
    metarun: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    root = write_images(tmp_path / "images", side=8)
    tiny = ("data.size=8", "backbone.channels=[2]", "train.steps=1", "train.tasks=2", "val.tasks=2", "test.tasks=2")
    ended = metarun("data=folder", f"data.root={root}", "data.ways=2", *tiny)
    assert ended.code == 0
    images, parallel = ended.err.strip().splitlines()
    for line in (images, parallel):
        assert line.startswith(f"metarun: {tmp_path / 'file' / 'cache'}") and "cannot be written (" in line
    assert images.endswith("METARUN_CACHE names another folder.") and parallel.endswith("measures again next time.")


def test_of_several_ranks_the_first_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    warning = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "no room"})
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        ALOUD.emit(warning)
    assert capsys.readouterr() == ("", "metarun: no room\n")


def _with_signal(number: signal.Signals, script: str) -> tuple[int, str]:
    """The exit code and the errors of a process whose verb, or whose end, is met by a signal.

    A shell has what it starts in the background ignore Ctrl-C: this one does not.
    """
    start = "import signal, sys; signal.signal(2, signal.default_int_handler); from metarun.cli import main as m; "
    meet = f"meet = lambda *_: signal.raise_signal({number:d}); "
    done = subprocess.run([sys.executable, "-c", start + meet + script], stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_while_modules_are_imported_ends_with_one_line(number: signal.Signals, name: str) -> None:
    swallowing = "m.import_module = lambda name: (weakref.ref(set(), meet), time.sleep(9)); sys.exit(m.main())"
    for script in ("m.import_module = meet; sys.exit(m.main())", f"import time, weakref; {swallowing}"):
        assert _with_signal(number, script) == (128 + number, f"metarun: stopped by {name}. Nothing was saved yet.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_line_ends_without_a_traceback(number: signal.Signals) -> None:
    assert _with_signal(number, "m._answer = lambda words: 130; m.main(); meet()") == (-number, "")


def test_a_signal_while_the_first_one_is_told_changes_nothing() -> None:
    script = "m._answer = lambda words: exec('raise KeyboardInterrupt'); sys.exit(m.main())"
    assert _with_signal(signal.SIGINT, script) == (130, "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    script = "signal.signal(2, signal.SIG_IGN); m._answer = meet; m.main(); meet(); print('well', file=sys.stderr)"
    assert _with_signal(signal.SIGINT, script) == (0, "well\n")
