"""Every mistake a user can make is answered by one line, exit code 2 and no traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.data.sinusoid import Sinusoid
from metarun.tracking import atomic

FOLDER = ("data=folder", "data.root=photos", "data.size=12", "data.ways=2", "parallel=vmap", "train.steps=1")


def one_line(outcome: Any, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("metarun: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, (word, outcome.err)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["algo=mamel"], ["algo=mamel", "maml"]),
        (["data=omniglt"], ["data=omniglt", "omniglot"]),
        (["experiment=nonexistent"], ["experiment=nonexistent", "omniglot_lake"]),
        (["+experiment=omniglot_lak"], ["omniglot_lake"]),
        (["trian.steps=3"], ["trian.steps", "train.steps"]),
        (["dta=omniglot"], ["dta", "data"]),
        (["algoo=maml"], ["algoo", "algo"]),
        (["sead=1"], ["sead", "seed"]),
        (["data.root=photos"], ["data.root", "another data"]),
        (["+data.shotz=3"], ["data.shotz", "data.shots"]),
        (["+sead=3"], ["sead", "seed"]),
        (["train.steps=[1"], ["train.steps=[1", "quotes"]),
        (["train.steps"], ["train.steps", "key=value"]),
        (["=3"], ["=3", "key=value"]),
        (["raport"], ["raport", "report"]),
        (["--mutlirun"], ["--mutlirun", "--multirun"]),
        (["seed=0,1"], ["seed=0,1", "-m"]),
        (["resume="], ["resume="]),
        (["test.only=true"], ["test.only=true", "resume="]),
        (["-m", "algo=maml,mamel"], ["algo=mamel", "maml"]),
    ],
)
def test_what_cannot_be_composed_is_answered_with_the_nearest_right_names(
    quick: Callable[..., Any], typed: list[str], words: list[str]
) -> None:
    one_line(quick(*typed), *words)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["train.steps=abc"], ["train.steps=abc", "whole number"]),
        (["train.steps=2.5"], ["train.steps=2.5", "whole number"]),
        (["train.tasks=0"], ["train.tasks=0", "1 or more"]),
        (["train.steps=-5"], ["train.steps=-5", "0 or more"]),
        (["algo.first_order=maybe"], ["algo.first_order=maybe", "true or false"]),
        (["algo.inner_loss=max"], ["algo.inner_loss=max", "mean"]),
        (["algo.inner_lr=fast"], ["algo.inner_lr=fast", "a number"]),
        (["optim.lr=-1"], ["optim.lr=-1", "0 or more"]),
        (["optim.lr=abc"], ["optim.lr=abc", "a number"]),
        (["train.max_time=soon"], ["train.max_time=soon", "10m"]),
        (["norm_stats=query"], ["norm_stats=query", "support"]),
        (["seed=x"], ["seed=x", "whole number"]),
        (["train=3"], ["train=3", "train.key=value"]),
        (["~algo"], ["algo"]),
        (["~train.steps"], ["train.steps", "missing"]),
        (["data.ways=3"], ["data.ways=3"]),
        (["algo.trains_on=folds"], ["algo.trains_on=folds", "data=sinusoid offers episodes, group and rows"]),
        (["test.data=glyphs"], ["test.data=glyphs", "shape"]),
        (["test.data=omniglt"], ["test.data=omniglt", "omniglot"]),
        (["hydra.run.dir=/proc/none/x"], ["/proc/none", "hydra.run.dir"]),
        (["algo._target_=nowhere.Algo"], ["algo._target_=nowhere.Algo", "nowhere.py"]),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_remedy(
    quick: Callable[..., Any], typed: list[str], words: list[str]
) -> None:
    one_line(quick(*typed), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named(quick: Callable[..., Any]) -> None:
    one_line(quick("device=cuda"), "device=cuda", "device=cpu")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["data.root=nowhere"], ["data.root=/", "/nowhere does not exist"]),
        (["data.shots=8"], ["data.shots=8", "9 images", "has 8", "add images"]),
        (["algo=reptile", "train.shots=8"], ["train.shots=8", "9 images", "has 8"]),
        (["data.ways=9"], ["data.ways=9", "classes"]),
    ],
)
def test_what_a_folder_of_images_cannot_give_is_named(
    metarun: Callable[..., Any], write_images: Callable[..., Path], typed: list[str], words: list[str]
) -> None:
    write_images(Path("photos"))
    one_line(metarun(*FOLDER, *typed), *words)


def test_a_damaged_image_is_named(metarun: Callable[..., Any], write_images: Callable[..., Path]) -> None:
    broken = write_images(Path("photos")) / "g0" / "c0" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    one_line(metarun(*FOLDER), "g0/c0/3.png")


def test_a_damaged_zip_is_named(metarun: Callable[..., Any]) -> None:
    Path("zips").mkdir()
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(f"zips/{part}.zip", "w") as archive:
            archive.writestr(f"{part}/Greek/character01/0.png", b"no image")
    one_line(metarun("data=omniglot", "data.root=zips"), "images_background.zip")
    Path("zips/images_background.zip").write_bytes(b"PK cut short")
    one_line(metarun("data=omniglot", "data.root=zips"), "images_background.zip")


def test_an_output_directory_below_a_file_is_named(quick: Callable[..., Any]) -> None:
    Path("outputs").write_text("not a folder")
    one_line(quick(), "outputs", "hydra.run.dir")
    one_line(quick("hydra.run.dir=outputs/run"), "outputs/run", "hydra.run.dir")


def test_a_full_disk_is_told_in_one_line_and_leaves_whole_files(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick("hydra.run.dir=run")
    before = torch.load("run/checkpoints/last.pt", weights_only=True)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    one_line(quick("resume=run", "train.steps=4"), "No space left")
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["step"] == before["step"]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(quick: Callable[..., Any]) -> None:
    quick("hydra.run.dir=run")
    one_line(quick("resume=run", "train.steps=9", "algo.inner_lr=1e30"), "at step 3", "run/checkpoints/last.pt")
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "failed" and "step 3" in result["error"]
    last = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert last["step"] == 2 and all(bool(p.isfinite().all()) for p in last["params"].values())


def test_a_folder_that_is_no_run_cannot_be_resumed(quick: Callable[..., Any], tmp_path: Path) -> None:
    one_line(quick(f"resume={tmp_path}"), f"resume={tmp_path}", "no run")
    quick("hydra.run.dir=run")
    one_line(quick("resume=rum"), "resume=rum", "no run")
    one_line(quick("-m", "resume=run", "seed=0,1"), "resume=run", "-m")


@pytest.mark.parametrize(
    ("typed", "word"), [("backbone.hidden=[5]", "backbone="), ("optim=sgd", "optim="), ("algo=mtl", "algo=maml")]
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    metarun: Callable[..., Any], quick: Callable[..., Any], typed: str, word: str
) -> None:
    quick("hydra.run.dir=run")
    kept = [*Path("run/.hydra").iterdir(), *Path("run").glob("checkpoints/*"), Path("run/result.json")]
    before = {file: file.read_bytes() for file in kept}
    one_line(metarun("resume=run", typed), word)
    assert {file: file.read_bytes() for file in kept} == before


def test_a_truncated_checkpoint_is_named(metarun: Callable[..., Any], quick: Callable[..., Any]) -> None:
    quick("hydra.run.dir=run")
    file = Path("run/checkpoints/last.pt")
    file.write_bytes(file.read_bytes()[:200])
    one_line(metarun("resume=run"), "run/checkpoints/last.pt", "damaged", "best.pt is whole")
    shutil.rmtree("run/checkpoints")
    one_line(metarun("resume=run"), "run/checkpoints/last.pt", "no checkpoint")


def test_a_bug_keeps_its_traceback_and_exits_with_one(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Sinusoid, device: torch.device) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Sinusoid, "load", load)
    outcome = quick("hydra.run.dir=run")
    assert outcome.code == 1 and "Traceback" in outcome.err and "metarun: RuntimeError: a bug" in outcome.err
    assert "a bug" in json.loads(Path("run/result.json").read_text())["error"]
