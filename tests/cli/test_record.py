"""The folder of a run: one process at a time, a record that cannot be lost, nothing where nothing began."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun import run as run_module
from metarun.tracking import atomic

RECORD = Path("run/.hydra")


def status() -> str:
    return json.loads(Path("run/result.json").read_text())["status"]


@pytest.mark.parametrize("typed", ["train.steps=abc", "train.max_time=soon", "data.shots=0", "algo.inner_lr=[1]"])
def test_a_mistake_leaves_no_folder(quick: Callable[..., Any], typed: str) -> None:
    assert quick(typed).code == 2 and not Path("outputs").exists()
    assert quick(typed, "hydra.run.dir=named").code == 2 and not Path("named").exists()


def test_data_that_are_not_there_leave_no_folder(metarun: Callable[..., Any]) -> None:
    assert metarun("data=folder", "data.root=nowhere").code == 2 and not Path("outputs").exists()


def test_what_else_lies_in_a_folder_named_by_hand_stays(quick: Callable[..., Any]) -> None:
    Path("named").mkdir()
    Path("named/notes.txt").write_text("mine")
    assert quick("train.steps=abc", "hydra.run.dir=named").code == 2
    assert [file.name for file in Path("named").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["overrides.yaml", "hydra.yaml"])
@pytest.mark.parametrize("left", [0, 0.5, 0.9])
def test_a_damaged_record_is_refused(
    quick: Callable[..., Any], metarun: Callable[..., Any], name: str, left: float
) -> None:
    quick("hydra.run.dir=run", "seed=3", "optim.lr=0.01")
    file = RECORD / name
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))] if name == "overrides.yaml" or not left else b"[]")
    refused = metarun("resume=run", "train.steps=5")
    assert refused.code == 2 and name in refused.err and refused.err.count("\n") == 1


def test_a_disk_that_fails_while_the_record_is_rewritten_leaves_it_as_it_was(
    quick: Callable[..., Any], metarun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("hydra.run.dir=run")
    before = {file: file.read_bytes() for file in RECORD.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        assert metarun("resume=run", "train.steps=5").code == 2
    assert {file: file.read_bytes() for file in RECORD.iterdir()} == before
    assert metarun("resume=run", "train.steps=5").code == 0


HOLD = """
import sys
from pathlib import Path
from metarun.engine.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("typed", [("train.steps=5",), ("test.only=true",)])
def test_a_second_process_is_told_who_works_there(
    quick: Callable[..., Any], metarun: Callable[..., Any], typed: tuple[str, ...]
) -> None:
    quick("hydra.run.dir=run")
    command = [sys.executable, "-c", HOLD, "run/.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        refused = metarun("resume=run", *typed)
        assert refused.code == 2 and f"is in use: process {other.pid} on " in refused.err
        other.communicate("")
    assert metarun("resume=run", *typed).code == 0
    assert not Path("run/.lock").exists()


def test_the_same_command_starts_anew_where_nothing_can_be_lost(quick: Callable[..., Any]) -> None:
    """What a run leaves that was killed before its first checkpoint."""
    quick("hydra.run.dir=run")
    shutil.rmtree("run/checkpoints")
    Path("run/result.json").unlink()
    assert quick("hydra.run.dir=run").code == 0 and status() == "completed"
    assert len([*Path("run").glob("events.out.tfevents.*")]) == 1


# Checkpoints


def test_a_flipped_bit_is_found_or_changes_nothing(quick: Callable[..., Any], metarun: Callable[..., Any]) -> None:
    quick("hydra.run.dir=run")
    file = Path("run/checkpoints/last.pt")
    whole, params = file.read_bytes(), torch.load(file, weights_only=True)["params"]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for place in torch.randint(len(whole), (40,), generator=generator).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        outcome = metarun("resume=run")
        if outcome.code == 0:
            now = torch.load(file, weights_only=True)["params"]
            assert all(p.equal(now[name]) for name, p in params.items())
        else:
            refused += 1
            assert outcome.code == 2 and outcome.err.count("\n") == 1 and "last.pt is damaged" in outcome.err
    assert refused > 20


def test_the_best_checkpoint_goes_on_in_place_of_the_last(
    quick: Callable[..., Any], metarun: Callable[..., Any]
) -> None:
    """As the message about a damaged one advises."""
    quick("hydra.run.dir=run", "val.every=1", "train.steps=3", "schedule=constant")
    end = torch.load("run/checkpoints/last.pt", weights_only=True)["params"]
    Path("run/checkpoints/last.pt").write_bytes(b"")
    assert "best.pt is whole: copy it there" in metarun("resume=run").err
    shutil.copy("run/checkpoints/best.pt", "run/checkpoints/last.pt")
    assert metarun("resume=run").code == 0
    again = torch.load("run/checkpoints/last.pt", weights_only=True)["params"]
    assert all(p.equal(again[name]) for name, p in end.items())


def test_a_run_whose_disk_had_room_for_the_best_checkpoint_alone_goes_on_from_it(
    quick: Callable[..., Any], metarun: Callable[..., Any]
) -> None:
    quick("hydra.run.dir=run")
    Path("run/checkpoints/last.pt").unlink()
    assert metarun("resume=run", "train.steps=3").code == 0 and status() == "completed"


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": None},
        {"step": "five"},
        {"parallel": ["vmap"]},
        {"best": {}},
        {"optimizer": {"state": {0: 1}, "param_groups": [{}]}},
        {"params": {"trunk": 3}},
        {"run": {"choices": 5}},
        {"run": {"choices": {}, "config": []}},
        {"run": "mine"},
    ],
    ids=str,
)
def test_missing_and_foreign_entries_are_told_in_one_line(
    quick: Callable[..., Any], metarun: Callable[..., Any], change: dict[str, Any]
) -> None:
    quick("hydra.run.dir=run")
    file = "run/checkpoints/last.pt"
    saved = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in {**saved, **change}.items() if value is not None}, file)
    refused = metarun("resume=run", "train.steps=5")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "checkpoint" in refused.err


# Numbers that are none


def test_a_validation_without_a_number_fails(quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    true = run_module.evaluate

    def judged(*args: Any, **more: Any) -> Any:
        found = true(*args, **more)
        return (
            found._replace(scores={**found.scores, "mse": {**found.scores["mse"], "mean": math.nan}})
            if len(args) > 4
            else found
        )

    monkeypatch.setattr(run_module, "evaluate", judged)
    outcome = quick("hydra.run.dir=run")
    assert outcome.code == 2 and "the validation's score is no number at step 2" in outcome.err
    assert status() == "failed" and not Path("run/checkpoints/best.pt").exists()


def test_a_meta_test_without_a_number_fails_and_keeps_what_it_found(
    quick: Callable[..., Any], metarun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("hydra.run.dir=run")
    outcome = metarun("resume=run", "test.only=true", "algo.inner_lr=1e30", "name=wild")
    assert outcome.code == 2 and "the meta-test's mse is no number" in outcome.err
    written = json.loads(Path("run/result-wild.json").read_text())
    assert written["status"] == "failed" and written["test"]["mse"]["mean"] is None


def test_a_meta_test_whose_every_task_diverged_fails_though_its_accuracy_is_zero(metarun: Callable[..., Any]) -> None:
    small = ("data.alphabets=6", "data.characters=5", "data.drawings=6", "data.ways=3", "backbone.channels=[4,4,4,4]")
    short = ("train.steps=2", "train.tasks=2", "val.tasks=2", "test.tasks=2", "parallel=loop", "backbone.norm=none")
    assert metarun(*small, *short, "hydra.run.dir=run").code == 0
    outcome = metarun("resume=run", "test.only=true", "algo.inner_lr=1e30", "name=wild")
    assert outcome.code == 2 and "the meta-test's accuracy is no number: adaptation diverged on every" in outcome.err
    written = json.loads(Path("run/result-wild.json").read_text())
    assert written["status"] == "failed" and written["test"]["accuracy"]["mean"] == 0.0


def test_parameters_that_are_no_numbers_are_not_tested(quick: Callable[..., Any], metarun: Callable[..., Any]) -> None:
    quick("hydra.run.dir=run")
    file = "run/checkpoints/best.pt"
    saved = torch.load(file, weights_only=True)
    torch.save({**saved, "params": {name: p * math.nan for name, p in saved["params"].items()}}, file)
    outcome = metarun("resume=run", "test.only=true")
    assert outcome.code == 2 and "no number" in outcome.err
