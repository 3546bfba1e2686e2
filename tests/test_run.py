from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun import run as run_module
from metarun.errors import UserError
from metarun.evaluate import Verdict
from metarun.loop import Stopped
from metarun.run import run
from metarun.settings import Job
from metarun.tracking import checkpoint
from metarun.tracking.trackers import Trackers
from metarun.types import learned

KEYS = {
    *("status", "error", "algo", "data", "backbone", "device", "seed", "steps", "params"),
    *("metric", "test", "val", "protocol", "cost", "aside", "versions"),
}
PROTOCOL = {
    *("ways", "shots", "queries", "norm", "input", "split", "rotations"),
    *("transductive", "adapt_steps", "selection", "ci95", "episodes"),
}
COST = {"train_s", "tasks_per_s", "peak_memory_mb", "parallel", "compile", "precision", "ranks"}
SMALL = ("device=cpu", "parallel=vmap", "train.steps=4", "train.log_every=2", "val.every=2", "val.tasks=4")
TINY = (
    *("data.ways=2", "data.size=12", "data.colour=false", "train.shots=2"),
    *("backbone.channels=[4,4,4,4]", "test.tasks=6"),
)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A run handles SIGINT and SIGTERM; the tests get their own handlers back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., Path]) -> tuple[str, ...]:
    """The overrides that name a small data set of easy images."""
    return ("data=folder", f"data.root={write_images(tmp_path / 'images')}")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock or the allocator decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    volatile = ("time", "train/tasks_per_s", "train/memory_mb")
    return [{key: value for key, value in row.items() if key not in volatile} for row in rows]


def check_record(record: dict[str, Any]) -> None:
    """Of a completed run."""
    assert set(record) == KEYS and {key for key in record["protocol"] if "." not in key} == PROTOCOL
    assert record["status"] == "completed" and record["error"] is None
    assert set(record["cost"]) == COST
    assert set(record["versions"]) == {"metarun", "torch", "python", "git"}
    assert record["cost"]["train_s"] > 0 and record["cost"]["tasks_per_s"] > 0
    assert record["protocol"]["episodes"].startswith("sha256:")
    assert record["test"]["tasks"] == 6 and record["test"]["diverged"] == 0
    assert record["test"]["by_step"][0]["step"] == 0
    assert record["test"]["by_step"][-1]["step"] == record["test"]["adapt_steps"] <= record["protocol"]["adapt_steps"]
    assert record["val"]["step"] in (2, 4)


def test_every_algorithm_leaves_the_promised_result(
    algo_name: str, job: Callable[..., Job], images: tuple[str, ...]
) -> None:
    made = job(f"algo={algo_name}", *images, *SMALL, *TINY, "seed=3")
    run(made)
    record = result_of(made.folder)
    check_record(record)
    assert (record["algo"], record["data"], record["backbone"]) == (algo_name, "folder", "conv4")
    assert (record["device"], record["seed"], record["steps"]) == ("cpu", 3, 4)
    saved = learned(checkpoint.load(made.folder / "checkpoints" / "best.pt")["params"])
    assert record["params"] == sum(p.numel() for p in saved.values())
    scores = [record["test"], record["val"], *record["test"]["by_step"]]
    assert all(0 <= s["accuracy"]["mean"] <= 1 and s["loss"]["mean"] >= 0 for s in scores)
    assert record["test"]["accuracy"]["tasks"] == 6 and record["val"]["accuracy"]["tasks"] == 4
    assert [record["protocol"][key] for key in ("ways", "shots", "queries")] == [2, 1, 1]
    assert record["protocol"]["norm"] == "batch statistics of the query set"


@pytest.mark.parametrize("algo", ["maml", "reptile"])
def test_a_regression_leaves_its_error_instead_of_an_accuracy(algo: str, job: Callable[..., Job]) -> None:
    made = job("data=sinusoid", f"algo={algo}", *SMALL, "test.tasks=6")
    run(made)
    record = result_of(made.folder)
    check_record(record)
    assert record["test"]["mse"]["mean"] > 0 and "accuracy" not in record["test"]
    assert record["protocol"]["norm"] == "no batch statistics"


def test_every_algorithm_is_tested_on_the_same_episodes(job: Callable[..., Job], images: tuple[str, ...]) -> None:
    names: dict[str, set[str]] = {}
    groups = {
        "same": [("algo=maml",), ("algo=transfer",), ("algo=mtl", "seed=5"), ("algo=reptile", "norm_stats=support")],
        "other": [("algo=maml", "test.seed=9")],
    }
    for label, overrides in groups.items():
        for given in overrides:
            record = run(job(*given, *images, *SMALL, *TINY, "train.steps=1", "test.adapt_steps=1"))
            names.setdefault(label, set()).add(record["protocol"]["episodes"])
    assert len(names["same"]) == len(names["other"]) == 1 and names["same"] != names["other"]


def test_the_checkpoint_that_validation_chose_is_tested(
    job: Callable[..., Job], images: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation scores are made to fall, so the best is the first, at step 2 of 4."""
    tested: list[Any] = []
    scores = iter([0.9, 0.1])
    true = run_module.evaluate

    def watched(algo: Any, params: Any, exam: Any, *args: Any, **more: Any) -> Verdict:
        found = true(algo, params, exam, *args, **more)
        if len(next(iter(exam.draw.values()))) == 4:  # validation
            return found._replace(scores={**found.scores, "accuracy": {"mean": next(scores)}})
        tested.append({name: p.clone() for name, p in params.items()})
        return found

    monkeypatch.setattr(run_module, "evaluate", watched)
    made = job(*images, *SMALL, *TINY)
    record = run(made)
    best, last = (checkpoint.load(made.folder / "checkpoints" / name)["params"] for name in ("best.pt", "last.pt"))
    assert record["val"]["step"] == 2 and record["steps"] == 4
    assert all(p.equal(best[name]) for name, p in tested[-1].items())
    assert not all(p.equal(last[name]) for name, p in tested[-1].items())


def test_validation_and_meta_test_tell_how_far_they_have_come(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Trackers, "part", lambda self, *part: told.append(part))
    run(job("data=sinusoid", *SMALL, "test.tasks=6"))
    assert told == [("validation", 0, 4), ("validation", 4, 4)] * 2 + [("meta-test", 0, 6), ("meta-test", 6, 6)]


def test_a_failure_is_recorded(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    made = job("data=sinusoid", *SMALL, "optim=sgd", "optim.lr=1e30")
    with pytest.raises(UserError, match="the loss is no number at step"):
        run(made)
    record = result_of(made.folder)
    assert set(record) == KEYS and record["status"] == "failed"
    assert "the loss is no number at step" in record["error"]
    assert record["test"] is None and record["protocol"]["ways"] == 1


def test_a_run_that_could_not_begin_leaves_nothing(job: Callable[..., Job]) -> None:
    made = job("data=folder", "data.root=nowhere", *SMALL)
    with pytest.raises(UserError, match=r"data\.root=nowhere does not exist"):
        run(made)
    assert [*made.folder.iterdir()] == []


def test_a_bug_leaves_its_traceback(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    made = job("data=sinusoid", *SMALL)
    monkeypatch.setattr(run_module, "evaluate", lambda *_, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(made)
    assert "ZeroDivisionError" in result_of(made.folder)["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_recorded_and_resumes(
    number: signal.Signals, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("data=sinusoid", *SMALL, "test.tasks=6")
    whole = run(job(*overrides, name="whole"))
    made, true = job(*overrides), run_module.evaluate

    def interrupted(*args: Any, **more: Any) -> Any:
        if len(args) > 4:  # while it validates
            os.kill(os.getpid(), number)
        return true(*args, **more)

    monkeypatch.setattr(run_module, "evaluate", interrupted)
    with pytest.raises(Stopped) as stopped:
        run(made)
    assert stopped.value.signal == number and stopped.value.folder == made.folder
    record = result_of(made.folder)
    assert set(record) == KEYS and record["status"] == "interrupted" and record["error"] is None
    assert record["steps"] == 2 and record["test"] is None
    monkeypatch.setattr(run_module, "evaluate", true)
    again = job(*overrides, f"resume='{made.folder}'")
    assert run(again)["test"] == whole["test"]
    assert result_of(made.folder)["status"] == "completed"
    assert rows_of(made.folder) == rows_of(job(name="whole").folder)


def test_a_signal_during_the_last_step_spares_the_meta_test(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, true = job("data=sinusoid", *SMALL, "test.tasks=6"), run_module.result.progress

    def late(*args: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return true(*args)

    monkeypatch.setattr(run_module.result, "progress", late)
    with pytest.raises(Stopped):
        run(made)
    record = result_of(made.folder)
    assert record["status"] == "interrupted" and record["steps"] == 4 and record["test"] is None


# Images that stay on disk


FROM_DISK = ("data.resident=false", "train.steps=6")


@pytest.mark.parametrize("algo", ["maml", "transfer"])
def test_images_on_disk_give_the_run_of_images_in_memory(
    algo: str, job: Callable[..., Job], images: tuple[str, ...]
) -> None:
    keys = (f"algo={algo}", *images, *SMALL, *TINY, "backbone.dropout=0.3", "train.steps=6")
    found = []
    for name, resident in (("memory", "true"), ("disk", "false")):
        made = job(*keys, f"data.resident={resident}", name=name)
        record = run(made)
        params = checkpoint.load(made.folder / "checkpoints" / "last.pt")["params"]
        found.append({"params": params, "test": record["test"], "val": record["val"], "named": record["protocol"]})
    assert equal(*found)


def test_a_cache_cut_short_while_training_is_told_in_one_line(
    metarun: Callable[..., Any], images: tuple[str, ...], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = run_module.evaluate

    def cutting(*args: Any, **more: Any) -> dict[str, Any]:
        found = true(*args, **more)
        (file,) = own_cache.glob("folder-*/images.npy")
        os.truncate(file, 5000)
        return found

    monkeypatch.setattr(run_module, "evaluate", cutting)
    ended = metarun(*images, *SMALL, *TINY, *FROM_DISK)
    assert ended.code == 2
    (line,) = ended.err.strip().splitlines()
    assert "images.npy was cut short while it was read. Start again" in line


def test_ctrl_c_ends_a_run_from_disk_with_a_checkpoint(tmp_path: Path, images: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    overrides = (*images, *RUN, *TINY, *FROM_DISK, "train.tasks=4", "train.steps=1000000", "val.every=1000000")
    process = subprocess.Popen(command(folder, *overrides), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "metrics.jsonl").exists() or not rows_of(folder):
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "To go on: metarun resume=run" in err
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["step"] == result_of(folder)["steps"] > 0


# Killed for good


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "metarun", *overrides, f"hydra.run.dir='{folder}'"]


def killed(folder: Path, after: int, overrides: tuple[str, ...]) -> None:
    """Runs until a checkpoint and a step are reached and a moment has passed; then SIGKILL."""
    process = subprocess.Popen(command(folder, *overrides), cwd=folder.parent, stdout=subprocess.DEVNULL)
    try:
        while not (folder / "checkpoints" / "last.pt").exists() or rows_of(folder)[-1]["step"] < after:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        time.sleep(random.random() * 0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


RUN = ("device=cpu", "device.threads=1", "parallel=vmap", "val.tasks=8", "test.tasks=20", "train.log_every=5")
SINUSOID = ("data=sinusoid", *RUN, "chunk=13", "train.steps=150", "val.every=10", "test.adapt_steps=2")
DROPOUT = (*RUN, *TINY, "chunk=3", "train.tasks=6", "train.steps=60", "val.every=10", "backbone.dropout=0.3")


def lasting(saved: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name not in ("seconds", "tasks_per_s")}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one.equal(other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("problem", ["sinusoid", "images with dropout"])
def test_resume_after_sigkill_is_bit_identical(
    problem: str, tmp_path: Path, images: tuple[str, ...], job: Callable[..., Job]
) -> None:
    """Killed by a clock, so at another point each time."""
    overrides, points = (SINUSOID, (20, 90)) if problem == "sinusoid" else ((*images, *DROPOUT), (15,))
    whole = tmp_path / "whole"
    subprocess.run(command(whole, *overrides), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    for after in points:
        folder = tmp_path / f"killed{after}"
        killed(folder, after, overrides)
        resume = [sys.executable, "-m", "metarun", f"resume={folder}"]
        subprocess.run(resume, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        assert rows_of(folder) == rows_of(whole)
        for name in ("last.pt", "best.pt"):
            one, other = (lasting(checkpoint.load(f / "checkpoints" / name)) for f in (folder, whole))
            assert equal(one, other)
        for part in ("status", "test", "val", "protocol", "steps"):
            assert result_of(folder)[part] == result_of(whole)[part]


# It learns


def test_maml_halves_the_error_on_sinusoids(job: Callable[..., Job]) -> None:
    keys = ("data=sinusoid", *SMALL, "val.tasks=50", "test.tasks=200", "optim.lr=0.01")
    start = run(job(*keys, "train.steps=1", "optim.lr=0", name="start"))
    end = run(job(*keys, "train.steps=300", "val.every=300"))
    assert start["protocol"]["episodes"] == end["protocol"]["episodes"]
    assert end["test"]["mse"]["mean"] < start["test"]["mse"]["mean"] / 2
    by_step = [row["mse"]["mean"] for row in end["test"]["by_step"]]
    assert by_step[1] < by_step[0]  # because it adapts


def test_every_algorithm_beats_chance_on_easy_images(
    algo_name: str, job: Callable[..., Job], images: tuple[str, ...]
) -> None:
    """Chance on 3 ways is 1/3; the interval's lower end is above half."""
    keys = ("data.ways=3", "data.size=12", "data.colour=false", "backbone.channels=[8,8,8,8]", "test.tasks=60")
    budget = ("train.steps=60", "val.every=60", "train.tasks=8", "optim.lr=0.01")
    if algo_name == "reptile":
        budget = ("train.steps=60", "val.every=60", "train.tasks=4", "train.shots=4", "algo.inner_lr=0.01")
    record = run(job(f"algo={algo_name}", *images, *SMALL, *keys, *budget))
    accuracy = record["test"]["accuracy"]
    assert accuracy["mean"] - accuracy["ci95"] > 0.5
