"""A whole run from the command line: what it leaves, how it stops, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metarun.data.sinusoid import Sinusoid
from metarun.tracking.trackers import Trackers

STRANGE = "a sweep's dir/1_algo=maml,seed=0 (old)"
MINE = """
from dataclasses import dataclass

import torch

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import Rate, learned


@dataclass(frozen=True)
class MyAlgo:
    net: Net
    inner_lr: Rate

    def init(self, generator):
        return {**self.net.init(generator), "memory.level": torch.tensor(float("nan"))}

    def adapt(self, params, support, steps):
        def loss(fast, support, step):
            return self.net.loss(fast, support)

        for fast in sgd(loss, params, support, self.inner_lr, steps, learned(params), first_order=True):
            yield self.net.given(fast, support)

    def predict(self, fast, x):
        return self.net(fast, x)

    def meta_grad(self, params, episode, parallel):
        slope, metrics = query_grad(self, params, episode, parallel, 1)
        level, loss = params["memory.level"], metrics["loss"]
        level = torch.where(level.isnan(), loss, 0.9 * level + 0.1 * loss)
        return {**slope, "memory.level": level}, metrics
"""
MINE_YAML = """
# Mine: MAML of one step, which keeps a running mean of its loss
algo:
  _target_: my_algo.MyAlgo
  trains_on: episodes
  inner_lr: 0.01
"""


def result(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "result.json").read_text())


def config(folder: str | Path) -> dict[str, Any]:
    return yaml.safe_load((Path(folder) / ".hydra" / "config.yaml").read_text())


def checkpoint(folder: str | Path) -> dict[str, Any]:
    return torch.load(Path(folder) / "checkpoints" / "last.pt", weights_only=True)


def digests(folder: str | Path) -> dict[str, str]:
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """signalled(step, numbers): these signals arrive during that meta-step."""

    def arrange(at: int, *numbers: signal.Signals) -> None:
        def step(self: Trackers, step: int) -> None:
            if step == at:
                for number in numbers:
                    signal.raise_signal(number)

        monkeypatch.setattr(Trackers, "step", step)

    return arrange


def test_a_run_leaves_what_others_can_read(quick: Callable[..., Any]) -> None:
    outcome = quick("name=first")
    assert outcome.code == 0 and outcome.err == ""
    (folder,) = Path("outputs").glob("*/*_first")
    names = {file.name.partition(".tfevents")[0] for file in folder.rglob("*") if file.is_file()}
    wanted = {"result.json", "metrics.jsonl", "run.log", "last.pt", "best.pt", "config.yaml", "overrides.yaml"}
    assert wanted | {"events.out", "hydra.yaml"} == names
    found = result(folder)
    assert (found["status"], found["steps"], found["algo"], found["error"]) == ("completed", 2, "maml", None)


def test_the_config_can_be_looked_at_without_running(metarun: Callable[..., Any]) -> None:
    outcome = metarun("experiment=sinusoid_maml", "--cfg", "job", "train.tasks=7")
    assert yaml.safe_load(outcome.out)["train"]["tasks"] == 7
    assert not Path("outputs").exists()


def test_experiments_are_chosen_with_and_without_a_plus(metarun: Callable[..., Any]) -> None:
    assert metarun("+experiment=sinusoid_maml", "--cfg=job").out == metarun("experiment=sinusoid_maml", "-c", "job").out


def test_the_shell_completes_groups_choices_and_keys(
    metarun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "complete" in metarun("-sc", "install=bash").out
    for line, word in (
        ("metarun al", "algo="),
        ("metarun algo=r", "algo=reptile"),
        ("metarun train.st", "train.steps="),
    ):
        monkeypatch.setenv("COMP_LINE", line)
        assert word in metarun("-sc", "query=bash").out


def test_a_directory_named_by_hand_does_not_lose_its_run(quick: Callable[..., Any]) -> None:
    assert quick("hydra.run.dir=run", "train.steps=abc").code == 2
    assert quick("hydra.run.dir=run").code == 0  # a mistake before training leaves nothing to lose
    before = digests("run")
    outcome = quick("hydra.run.dir=run", "seed=1")
    assert outcome.code == 2 and "hydra.run.dir=run" in outcome.err and digests("run") == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_goes_on_with_the_line_it_prints(
    metarun: Callable[..., Any],
    quick: Callable[..., Any],
    signalled: Callable[..., None],
    number: signal.Signals,
    code: int,
) -> None:
    signalled(3, number)
    outcome = quick(f'hydra.run.dir="{STRANGE}"', "train.steps=5")
    assert outcome.code == code and outcome.err.count("\n") == 1
    stopped = result(STRANGE)
    assert (stopped["status"], stopped["steps"], stopped["test"]) == ("interrupted", 3, None)
    assert checkpoint(STRANGE)["step"] == 3
    program, *arguments = shlex.split(outcome.err.partition("To go on: ")[2])
    assert program == "metarun"
    signalled(-1)
    assert metarun(*arguments).code == 0
    assert (result(STRANGE)["status"], result(STRANGE)["steps"]) == ("completed", 5)


def test_a_second_signal_stops_at_once_and_saves_nothing(
    quick: Callable[..., Any], signalled: Callable[..., None]
) -> None:
    signalled(4, signal.SIGINT, signal.SIGINT)
    outcome = quick("hydra.run.dir=run", "val.every=2", "train.steps=9")
    assert outcome.code == 130
    assert checkpoint("run")["step"] == 2
    assert result("run")["status"] == "interrupted"


def test_a_run_stopped_before_its_first_step_says_that_nothing_was_saved(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sinusoid, "load", lambda self, device: signal.raise_signal(signal.SIGINT))
    outcome = quick("hydra.run.dir=run")
    assert (outcome.code, outcome.err) == (130, "metarun: stopped by Ctrl-C. Nothing was saved yet.\n")
    assert not Path("run").exists()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real process, some steps into its training."""
    keys = ("data=sinusoid", "parallel=vmap", "train.steps=1000000", "train.log_every=1", "hydra.run.dir=run")
    process = subprocess.Popen(
        [sys.executable, "-m", "metarun", *keys],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and log.read_text()):
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_a_real_process_with_a_line_on_how_to_go_on(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert err.splitlines()[-1] == "metarun: stopped by Ctrl-C. To go on: metarun resume=run"
    assert result(tmp_path / "run")["status"] == "interrupted"


def test_a_resumed_run_keeps_its_overrides_and_takes_what_is_typed(
    metarun: Callable[..., Any], quick: Callable[..., Any]
) -> None:
    quick("hydra.run.dir=run", "seed=3", "optim.weight_decay=0.5")
    assert metarun("resume=run", "train.steps=4", "optim.weight_decay=0.25").code == 0
    assert (result("run")["steps"], result("run")["seed"]) == (4, 3)
    assert checkpoint("run")["optimizer"]["param_groups"][0]["weight_decay"] == 0.25
    written = config("run")
    assert (written["seed"], written["train"]["steps"], written["optim"]["weight_decay"]) == (3, 4, 0.25)
    assert metarun("resume=run").code == 0
    assert config("run")["train"]["steps"] == 4
    assert not Path("outputs").exists()


def test_a_resumed_run_ends_where_an_unbroken_one_ends(metarun: Callable[..., Any], quick: Callable[..., Any]) -> None:
    quick("hydra.run.dir=whole", "train.steps=6", "schedule=constant")
    quick("hydra.run.dir=halves", "train.steps=3", "schedule=constant")
    metarun("resume=halves", "train.steps=6")
    whole, halves = checkpoint("whole")["params"], checkpoint("halves")["params"]
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert result("whole")["test"] == result("halves")["test"]


def test_a_repeated_meta_test_writes_its_own_result_and_nothing_else(
    metarun: Callable[..., Any], quick: Callable[..., Any]
) -> None:
    quick("hydra.run.dir=run", "data.shots=4")
    before = digests("run")
    for typed, name in (
        ((), "result-test.json"),
        (("test.shots=2", "test.adapt_steps=3"), "result-test.shots=2,test.adapt_steps=3.json"),
        (("test.data=sinusoid", "name=other"), "result-other.json"),
    ):
        assert metarun("test.only=true", "resume=run", *typed).code == 0
        after = digests("run")
        assert set(after) - set(before) == {f"run/{name}"}
        assert {file: after[file] for file in before} == before
        before = after
    repeated = json.loads(Path("run/result-test.json").read_text())
    assert repeated["test"] == result("run")["test"] and repeated["steps"] == result("run")["steps"]
    shots = json.loads(Path("run/result-test.shots=2,test.adapt_steps=3.json").read_text())
    assert (shots["protocol"]["shots"], len(shots["test"]["by_step"])) == (2, 4)


PHOTOS = (
    *("data=folder", "data.root=photos", "data.size=12", "data.colour=false", "data.ways=2", "backbone.channels=[4]"),
    *("parallel=vmap", "train.steps=1", "train.tasks=2", "val.tasks=2", "test.tasks=2", "val.every=1"),
)
AGAIN = ("resume=run", "test.only=true", "name=other")


@pytest.fixture
def trained(metarun: Callable[..., Any], write_images: Callable[..., Path]) -> Callable[..., Any]:
    """trained(*typed): the meta-test of a run on small grey images is repeated with what is typed."""
    write_images(Path("photos"))
    assert metarun(*PHOTOS, "hydra.run.dir=run").code == 0
    return lambda *typed: metarun(*AGAIN, *typed)


def other_test() -> dict[str, Any]:
    return json.loads(Path("run/result-other.json").read_text())["protocol"]


def test_a_meta_test_on_another_folder_takes_the_runs_shape_and_says_so(
    trained: Callable[..., Any], write_images: Callable[..., Path]
) -> None:
    write_images(Path("it's other, more"), groups=1, classes=3, side=16)  # fewer than 3 splits of 2 classes
    again = trained("test.data=folder", "test.root='it\\'s other, more'")
    assert again.code == 0, again.err
    lines = again.out.splitlines()
    assert "data       folder, random (seed 0): 10/3/3 classes" in lines
    assert "test data  folder it's other, more, 2-way 1-shot, all: 3 classes" in lines
    assert "run        run" in lines and "result     run/result-other.json" in lines
    (caption,) = (line for line in lines if "test tasks" in line)
    assert caption.startswith("folder it's other, more 2-way 1-shot, 2 test tasks, trained on folder,")
    assert other_test()["test_data"] == "folder it's other, more" and result("run")["data"] == "folder"


def test_what_is_tested_on_another_data_set_follows_test_keys(
    trained: Callable[..., Any], write_images: Callable[..., Path]
) -> None:
    write_images(Path("more"), groups=1, classes=12, images=12)
    keys = ("test.data=folder", "test.root=more", "test.shots=7", "test.queries=5")  # more than the run's own data has
    assert trained(*keys, "test.keys={splits:[train,val,test],split_seed:3}").code == 0
    assert other_test()["split"] == "random (seed 3): 8/2/2 classes" and other_test()["shots"] == 7
    told = trained(*keys, "test.keys={size:16}")
    assert told.code == 2 and "[1, 16, 16]" in told.err  # what is typed wins, and does not fit here


def test_a_folder_that_has_test_classes_alone_can_be_tested_on(
    trained: Callable[..., Any], write_images: Callable[..., Path]
) -> None:
    write_images(Path("alone/test"), groups=1, classes=2)
    again = trained("test.data=folder", "test.root=alone")
    assert again.code == 0, again.err
    assert other_test()["split"] == "alone: test/: 2 classes"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["test.root=more"], ["test.root=", "more is about", "test.data=folder"]),
        (["test.keys={size:16}"], ["test.keys={'size': 16}", "test.data=folder"]),
        (["test.data=folder", "test.keys={sise:16}"], ["test.keys.sise", "Did you mean test.keys.size "]),
        (["test.data=folder", "test.keys={size:big}"], ["test.keys.size=big"]),
        (["test.data=folder", "test.root=nowhere"], ["test.root=", "nowhere does not exist"]),
        (
            ["test.data=folder", "test.root=photos"],
            ["test.data=folder", "13 of its 16 test classes", "another test.root"],
        ),
        (["test.data=folder", "test.root=photos", "test.keys={split:half}"], ["test.keys.split=half is neither"]),
    ],
)
def test_what_cannot_be_tested_on_is_answered_with_the_key_that_was_typed(
    trained: Callable[..., Any], typed: list[str], words: list[str]
) -> None:
    told = trained(*typed)
    assert told.code == 2 and len(told.err.splitlines()) == 1 and "data.root" not in told.err
    assert all(word in told.err for word in words), told.err
    assert not Path("run/result-other.json").exists()


def test_a_conf_folder_brings_an_algorithm_of_ones_own(
    metarun: Callable[..., Any], quick: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("conf/algo").mkdir(parents=True)
    Path("conf/algo/my_algo.yaml").write_text(f"# @package _global_{MINE_YAML}")
    Path("my_algo.py").write_text(MINE)
    assert "my_algo" in metarun("--help").out
    keys = ("algo=my_algo", "schedule=constant")
    assert quick(*keys, "hydra.run.dir=run").code == 0
    assert result("run")["algo"] == "my_algo"
    assert quick(*keys, "train.steps=3", "hydra.run.dir=whole").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "--config-dir" in metarun("resume=../run", "train.steps=3").err
    assert metarun("resume=../run", "train.steps=3", "--config-dir=../conf").code == 0
    whole, parts = (checkpoint(f"../{name}")["params"] for name in ("whole", "run"))
    assert all(p.equal(parts[name]) for name, p in whole.items())  # what it keeps included
    assert whole["memory.level"].isfinite() and result("../run")["params"] == sum(
        p.numel() for name, p in whole.items() if name != "memory.level"
    )
    assert quick("algo=my_algo", "--config-dir", "../conf", "hydra.run.dir=run").code == 0


def test_a_conf_folder_of_another_program_is_left_aside(quick: Callable[..., Any]) -> None:
    Path("conf").mkdir()
    Path("conf/config.yaml").write_text("a: 1\n")
    outcome = quick()
    assert outcome.code == 0 and "./conf is left aside" in outcome.err
