"""The console: plain lines in a pipe, a bar on a terminal, and numbers that mean what they say."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import time
from pathlib import Path

import pytest

from metarun.engine import progress
from metarun.tracking import console
from metarun.tracking.console import Console, describe

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


def test_tasks_that_diverged_are_told_in_the_caption_and_in_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    counted = {**RESULT["test"], "tasks": 600, "diverged": 3}
    Console(1, tmp_path).table({**RESULT, "test": counted})
    out = capsys.readouterr().out
    assert "600 test tasks, 3 of them diverged, mean ± 95% CI" in out
    assert "warning: adaptation diverged in 3 of 600 tasks, to outputs that are no numbers" in out
    Console(1, tmp_path).table({**RESULT, "test": {**counted, "diverged": 0}})
    assert "warning" not in capsys.readouterr().out


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


def of_heads(digit: float, ink: float) -> dict[str, object]:
    """A row of two heads; overall there is an accuracy of the one, a squared error of the other, and a loss of both."""
    error, right = {"mean": ink, "ci95": 0.01, "tasks": 9}, {"mean": digit, "ci95": 0.02, "tasks": 9}
    lost = {"mean": 7.0, "ci95": 0.1, "tasks": 9}
    return {
        **{"loss": lost, "accuracy": right, "mse": error},
        "heads": {"digit": {"accuracy": right, "loss": lost}, "ink": {"mse": error, "loss": error}},
    }


def test_heads_have_columns_of_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"step": 0, **of_heads(0.9, 0.5)}]
    Console(1, tmp_path).table({"data": "digits", "test": {"by_step": rows}, "protocol": {"adapt_steps": 0}})
    header, _, row = capsys.readouterr().out.splitlines()[1:4]
    names = ["adaptation steps", "digit accuracy (%)", "ink mse", "loss"]  # overall there is no more to say
    assert re.split("  +", header.strip()) == names
    assert re.split("  +", row.strip()) == ["* 0", "90.00 ± 2.00", "0.5000 ± 0.0100", "7.0000 ± 0.1000"]


def test_a_bar_names_overall_metrics_and_a_validation_those_of_heads_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {"loss": 0.5, "accuracy": 0.9, "left/accuracy": 0.95, "right/accuracy": 0.85, "left/loss": 0.5}
    shown = Console(9, tmp_path)
    shown.log(1, {f"{part}/{name}": value for part in ("train", "val") for name, value in values.items()})
    train, val = capsys.readouterr().out.splitlines()
    assert train == "step 1/9  loss 0.500  accuracy 90.0%"
    assert val == "step 1/9  validation  loss 0.500  accuracy 90.0%  left accuracy 95.0%  right accuracy 85.0%"


def test_a_title_wraps_where_numbers_would_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    heads = {f"colour of the hat {n}": {"accuracy": {"mean": 0.9, "ci95": 0.02, "tasks": 9}} for n in range(6)}
    test = {"by_step": [{"step": 0, "heads": heads}]}
    Console(1, tmp_path).table({"data": "hats", "test": test, "protocol": {"adapt_steps": 0}})
    assert sum(line.count("90.00 ± 2.00") for line in capsys.readouterr().out.splitlines()) == 6


def test_steps_that_were_not_taken_are_no_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    score = {"accuracy": {"mean": 0.5, "ci95": 0.1, "tasks": 9}}
    test = {**score, "adapt_steps": 1, "by_step": [{"step": step, **score} for step in (0, 1, 2, 3)]}
    Console(1, tmp_path).table({"data": "digits", "test": test, "protocol": {"adapt_steps": 3}})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "50.00" in line]
    assert [row[:-3] for row in rows] == [["0"], ["*", "1"]]


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
    assert re.search(r"━+ +40/100 +loss 0.500 +accuracy 87.3% +1,234 tasks/s +0:0\d left", bar)
    assert "\x1b[?25h" in after  # the cursor is back


def test_time_left_counts_the_steps_of_this_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    shown = Console(60_000, tmp_path, start=50_000)
    now += 500.0
    shown.step(50_001)  # the first step pays for warming up and is not counted
    now += 10.0
    shown.step(50_101)
    shown.log(50_101, VALUES)
    assert "step 50,101/60,000" in raw.getvalue()
    assert "16:30 left" in raw.getvalue()  # 9,899 steps of 0.1 s


def test_before_a_pace_is_known_no_time_is_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Console(100, tmp_path).log(10, VALUES)
    assert capsys.readouterr().out == "step 10/100  loss 0.500  accuracy 87.3%  1,234 tasks/s\n"


def test_a_step_between_two_draws_does_not_reach_rich(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = Console(10**6, tmp_path)
    drawn = []
    monkeypatch.setattr(shown.progress, "update", lambda task, completed, **_: drawn.append(completed))
    for step in range(1, 1001):
        shown.step(step)
        now += console.DRAW_EVERY / 100
    assert len(drawn) == pytest.approx(10, abs=1) and drawn[0] == 1


def test_a_file_gets_a_line_of_slow_steps_long_before_any_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    shown = Console(100, Path("run"))
    for step in range(1, 21):
        now += 4.0
        shown.step(step)
    shown.log(20, VALUES)
    assert [line.split()[1] for line in raw.getvalue().splitlines()] == ["8/100", "16/100", "20/100"]
    assert raw.getvalue().splitlines()[1] == "step 16/100  5:36 left"


@pytest.mark.parametrize(
    ("steps", "limit", "told"),
    [
        (3000, math.inf, "about 3:19:48 of training at this pace."),
        (3000, 7200.0, "about 2:00:00 of training at this pace."),
        (3000, 600.0, ""),
        (300, math.inf, ""),
    ],
)
def test_a_long_training_is_told_once_with_the_keys_that_shorten_it(
    monkeypatch: pytest.MonkeyPatch, steps: int, limit: float, told: str
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    shown = Console(steps, Path("run"), 0, limit)
    for step in range(1, 5):
        shown.step(step)
        now += 4.0
    lines = raw.getvalue().splitlines()
    assert [line.startswith(told) for line in lines] == ([True] if told else [])
    for key in ("train.steps", "train.tasks", "data.size", "train.max_time"):
        assert not told or key in lines[0]


def test_other_work_is_told_of_beside_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    shown = Console(100, Path("run"))
    shown.part("validation", 0, 200)
    while "validation  0/200 (0%)  0:00 so far" not in raw.getvalue():
        time.sleep(0.001)
    shown.part("validation", 120, 200)
    assert shown.meter and shown.meter.done == 120
    thread = shown.meter.thread
    shown.part("validation", 200, 200)
    assert shown.meter is None and not thread.is_alive()
    shown.part("meta-test", 0, 600)
    shown.close()  # an error in the middle of it
    assert shown.meter is None and len(shown.progress.tasks) == 1


def test_accuracies_of_different_tasks_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = Console(9, tmp_path)
    shown.ways = {"train": "128-way", "val": "5-way"}
    shown.log(1, {"train/loss": 4.5, "train/accuracy": 0.016, "val/loss": 1.0, "val/accuracy": 0.625})
    assert capsys.readouterr().out.splitlines() == [
        "step 1/9  loss 4.500  128-way accuracy 1.6%",
        "step 1/9  validation  loss 1.000  5-way accuracy 62.5%",
    ]


def test_the_caption_names_what_was_tested_on_and_what_was_trained_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    protocol = {**RESULT["protocol"], "test_data": "omniglot"}
    Console(1, tmp_path).table({**RESULT, "data": "glyphs", "protocol": protocol})
    out = capsys.readouterr().out
    assert "omniglot 5-way 1-shot, 600 test tasks, trained on glyphs, mean ± 95% CI" in out


def test_a_repeated_meta_test_names_the_file_that_it_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "run"
    Console(1, run).table(RESULT, run / "result-test.data=omniglot.json")
    out = capsys.readouterr().out
    assert "result     outputs/run/result-test.data=omniglot.json\n" in out and "tensorboard" not in out


def test_words() -> None:
    assert describe(VALUES, "train/") == ["loss 0.500", "accuracy 87.3%", "1,234 tasks/s"]
    assert describe({"val/left/accuracy": 1.0}, "val/") == ["left accuracy 100.0%"]
    assert describe({"train/loss": float("nan"), "train/changed": 3.0, "train/lr": 0.1}, "train/") == [
        "loss nan",
        "changed 3.000",
    ]
