"""The console: plain lines in a pipe, a bar on a terminal, and numbers that mean what they say."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

from metarun.tracking import console
from metarun.tracking.console import Console, clock, describe

VALUES = {"train/loss": 0.5, "train/accuracy": 0.873, "train/tasks_per_s": 1234.4, "lr": 0.001}
RESULT = {
    "data": "omniglot",
    "protocol": {"adapt_steps": 3, "ways": 5, "shots": 1},
    "test": {
        "by_step": [
            {"step": step, "accuracy": {"mean": mean, "ci95": 0.003, "tasks": 600}, "loss": {"mean": 1.0, "ci95": 0.1}}
            for step, mean in ((0, 0.2), (3, 0.987), (10, 0.99))
        ]
    },
}


def session(run_dir: Path) -> None:
    """A short run that uses everything."""
    shown = Console(100, run_dir)
    shown.header({"algorithm": "maml", "data": "omniglot [5-way]"})
    for step in range(1, 101):
        shown.step(step)
        if step % 10 == 0:
            shown.log(step, VALUES)
        if step % 50 == 0:
            shown.log(step, VALUES | {"val/accuracy": 0.951, "val/loss": float("nan")})
    shown.say("out of memory: [16] tasks at once")
    shown.table(RESULT)
    shown.close()


def read_all(descriptor: int) -> str:
    """What has been written to a pseudo-terminal so far."""
    os.set_blocking(descriptor, False)
    chunks = []
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    return b"".join(chunks).decode()


def test_a_pipe_gets_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    session(tmp_path / "outputs" / "run")
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert "omniglot [5-way]" in out
    assert "out of memory: [16] tasks at once" in out


def test_a_pipe_gets_every_validation_but_few_training_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    session(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines if "validation" in line] == ["50/100", "100/100"]
    assert {line.split()[1] for line in lines if "validation" not in line} == {"10/100", "100/100"}


def test_percentages_lie_between_0_and_100(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    session(tmp_path)
    out = capsys.readouterr().out
    percents = [float(word) for word in re.findall(r"([\d.]+)%(?! CI)", out)]
    assert {87.3, 95.1} == set(percents)
    assert "1,234 tasks/s" in out


def test_the_table_marks_the_row_of_the_protocol(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    session(tmp_path)
    out = capsys.readouterr().out
    marked = [line.split() for line in out.splitlines() if line.strip().startswith("* ")]
    assert marked == [["*", "3", "98.70", "±", "0.30", "1.0000", "±", "0.1000"]]
    assert "omniglot 5-way 1-shot, 600 test tasks, mean ± 95% CI" in out


def test_regression_is_shown_as_squared_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mse, lost = {"mean": 0.25, "ci95": 0.01, "tasks": 100}, {"mean": None, "ci95": None}
    rows = [{"step": 1, "mse": mse, "loss": mse}, {"step": 2, "mse": lost, "loss": lost}]
    shown = Console(1, tmp_path)
    shown.log(1, {"train/loss": 2.0, "train/mse": 2.0})
    shown.table({"data": "sinusoid", "test": {"by_step": rows}, "protocol": {"adapt_steps": 1}})
    out = capsys.readouterr().out
    assert "mse 2.000" in out
    assert "0.2500 ± 0.0100" in out and "nan" in out
    assert "%)" not in out and "loss" not in out


def test_heads_have_columns_of_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    heads = {"left": {"accuracy": {"mean": 0.9, "ci95": 0.01}}, "right": {"accuracy": {"mean": 0.8, "ci95": None}}}
    Console(1, tmp_path).table({"data": "digits", "test": {"heads": heads}})
    out = capsys.readouterr().out
    assert "left accuracy (%)" in out
    assert "90.00 ± 1.00" in out and "80.00" in out


@pytest.mark.parametrize(
    ("run", "home"),
    [
        ("outputs/2026-01-01/10-12-33_maml", "outputs"),
        ("outputs/sweeps/2026-01-01/10-12-33_lr/0_a=1", "outputs/sweeps/2026-01-01/10-12-33_lr"),
        ("elsewhere/run", "elsewhere"),
        ("my runs/run", "'my runs'"),
    ],
)
def test_the_next_commands_name_the_folder_of_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: str, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Console(1, tmp_path / run).table({"status": "failed", "test": None})
    out = capsys.readouterr().out
    assert f"tensorboard --logdir {home}\n" in out
    assert f"metarun report {home}\n" in out


def test_a_terminal_in_the_c_locale_gets_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    session(tmp_path)
    assert b"98.70 +- 0.30" in raw.getvalue()


def test_a_terminal_shows_a_bar_and_keeps_validations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(console, "DRAW_EVERY", 0.0)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        shown = Console(100, tmp_path)
        shown.step(1)
        shown.log(1, VALUES | {"val/accuracy": 0.951})
        shown.step(40)
        out = read_all(ours)
        shown.close()
        after = read_all(ours)
    os.close(ours)
    assert "step 1/100  validation  accuracy 95.1%" in out
    bar = re.sub(r"\x1b\[[\d;?]*\w", "", out).splitlines()[-1]
    assert re.search(r"━+ +40/100 +loss 0.500 +accuracy 87.3% +1,234 tasks/s +0:00 left", bar)
    assert "\x1b[?25h" in after  # the cursor is back


def test_time_left_counts_the_steps_of_this_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    shown = Console(60_000, tmp_path)
    shown.resume(50_000)
    shown.step(50_001)  # the first step pays for warming up and is not counted
    now += 10.0
    shown.step(50_101)
    shown.log(50_101, VALUES)
    assert "step 50,101/60,000" in raw.getvalue()
    assert f"{clock(9_899 * 10 / 100)} left" in raw.getvalue()


def test_a_step_that_draws_nothing_is_nearly_free(tmp_path: Path) -> None:
    shown = Console(10**6, tmp_path)
    shown.step(1)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for step in range(10_000):
            shown.step(step)
        best = min(best, (time.perf_counter() - began) / 10_000)
    assert best < 5e-6


def test_words_and_clocks() -> None:
    assert describe(VALUES, "train/") == ["loss 0.500", "accuracy 87.3%", "1,234 tasks/s"]
    assert describe({"val/left/accuracy": 1.0}, "val/") == ["left accuracy 100.0%"]
    assert describe({"train/loss": float("nan"), "train/grad_norm": 3.0}, "train/") == ["loss nan"]
    assert [clock(245), clock(3723), clock(2 * 86400 + 3 * 3600 + 240)] == ["4:05", "1:02:03", "2d 03:04"]
