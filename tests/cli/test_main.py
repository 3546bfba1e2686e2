"""What is typed reaches the file that answers it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metarun as package
from metarun import cli
from metarun.cli import VERBS, report


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
