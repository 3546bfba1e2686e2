"""A run takes over from a finished one: at the command line, with its checkpoints, and where that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = (
    *("data=folder", "data.size=12", "data.colour=false", "data.ways=2", "parallel=vmap", "val.every=2"),
    *("train.shots=16", "val.tasks=2", "test.tasks=2", "test.adapt_steps=1", "schedule=constant"),
)
NET = "backbone.channels=[3,4]"
SLOW = ("algo.layer_rate=0.5", "algo.frozen=[trunk.blocks.0.*]", "algo.phases={2:{frozen:[]}}")
MODES = {"feature": (), "model": SLOW, "target": ("algo.soft=0.5",)}

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that makes the run below leaves it for the others."""
    return tmp_path_factory.mktemp("kept") / "source"


@pytest.fixture
def finished(metarun: Command, write_images: Callable[..., Path], kept: Path) -> Command:
    """A run of two steps in `source`; what is returned starts others on the same images, with algo=transfer."""
    write_images(Path("data"))

    def other(*words: str) -> Any:
        given = [w for w in (NET, "algo=transfer") if not any(o.startswith(w.partition("=")[0] + "=") for o in words)]
        return metarun(*SMALL, *given, *words)

    if not kept.exists():
        assert other("train.steps=2", "hydra.run.dir=source").code == 0
        shutil.copytree("source", kept)
    shutil.copytree(kept, "source", dirs_exist_ok=True)
    return other


def saved(folder: str, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(f"{folder}/checkpoints/{name}", weights_only=True)


def result(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "result.json").read_text())


def source(mode: str, folder: str = "source") -> tuple[str, ...]:
    return (f"algo.source={folder}", f"algo.mode={mode}")


def test_each_mode_moves_what_it_says_and_goes_on_bit_for_bit_after_its_source_moved(
    finished: Command, metarun: Command
) -> None:
    start = saved("source", "best.pt")["params"]
    trunk = [name for name in start if name.startswith("trunk.")]
    for mode, words in MODES.items():
        for steps, folder in ((4, f"{mode}-whole"), (2, mode)):
            assert finished(*source(mode), *words, f"train.steps={steps}", f"hydra.run.dir={folder}").code == 0
    feature, model, target = (saved(mode)["params"] for mode in MODES)
    assert all(feature[f"memory.{name}"].equal(start[name]) for name in trunk)
    assert result("feature")["params"] == feature["head.weight"].numel() + feature["head.bias"].numel()
    assert all(model[name].equal(start[name]) is name.startswith("trunk.blocks.0.") for name in trunk)
    assert not saved("model-whole")["params"]["trunk.blocks.0.conv.weight"].equal(start["trunk.blocks.0.conv.weight"])
    assert all(target[f"memory.teacher.{name}"].equal(start[name]) for name in (*trunk, "head.weight"))
    assert result("target")["params"] == result("source")["params"]
    Path("source").rename("moved")
    lost = metarun("resume=model", "train.steps=4")
    assert lost.code == 2 and "source is no run" in lost.err and lost.err.count("\n") == 1
    for mode in MODES:
        assert metarun(f"resume={mode}", "train.steps=4", "algo.source=moved").code == 0
        whole, halves = saved(f"{mode}-whole"), saved(mode)
        assert whole["step"] == halves["step"] == 4
        assert all(p.equal(halves["params"][name]) for name, p in whole["params"].items())
        assert result(f"{mode}-whole")["test"] == result(mode)["test"]


def test_the_first_step_of_adam_is_as_long_as_the_rate_of_its_stage(finished: Command) -> None:
    finished(*source("model"), "train.steps=1", "optim.lr=0.01", "algo.layer_rate=0.5", "hydra.run.dir=run")
    before, after = saved("source", "best.pt")["params"], saved("run")["params"]
    for stage, pace in {"head.bias": 1.0, "trunk.blocks.1.norm": 0.5, "trunk.blocks.0.norm": 0.25}.items():
        moved = torch.cat([after[name] - before[name] for name in before if name.startswith(stage)]).abs()
        assert moved.max() == pytest.approx(0.01 * pace, rel=1e-3)


def test_what_is_frozen_stays_under_optimisers_around_another(finished: Command) -> None:
    start, weight = saved("source", "best.pt")["params"], "trunk.blocks.0.conv.weight"
    for name in ("sam", "ema"):
        finished(*source("model"), *SLOW, f"optim={name}", "train.steps=2", f"hydra.run.dir={name}")
        after = saved(name)["params"]
        assert after[weight].equal(start[weight]) and not after["head.weight"].equal(start["head.weight"])


def test_without_a_step_a_model_is_tested_as_its_source_was(finished: Command) -> None:
    assert finished(*source("model"), "train.steps=0", "hydra.run.dir=run").code == 0
    one, other = result("source"), result("run")
    assert (one["test"], other["steps"], other["cost"]["parallel"]) == (other["test"], 0, None)
    assert one["protocol"]["episodes"] == other["protocol"]["episodes"]


def test_a_source_may_be_of_another_algorithm_and_teach_a_smaller_network(finished: Command) -> None:
    few = ("train.steps=1", "train.tasks=2", "train.shots=2")
    for algo in ("protonet", "maml"):
        assert finished(*few, f"algo={algo}", f"hydra.run.dir={algo}").code == 0
    told = finished(*source("model", "protonet"), "train.steps=1", "hydra.run.dir=next").out
    assert "protonet: protonet on folder, conv4; its output layer is for other classes" in told
    again = finished(*source("feature", "next"), "train.steps=1", "hydra.run.dir=again")
    assert again.code == 0 and "its output layer fits" in again.out
    small = (*source("target", "maml"), "backbone.channels=[2]", "algo.test_adapt=all", "train.steps=0")
    assert finished(*small, "hydra.run.dir=small").code == 0


def test_what_is_no_source_is_refused_in_one_line_and_leaves_no_folder(
    finished: Command, write_images: Callable[..., Path]
) -> None:
    shutil.copytree("source", "begun", ignore=shutil.ignore_patterns("*.pt"))
    shutil.copytree("source", "older")
    torch.save({**saved("source", "best.pt"), "run": None}, "older/checkpoints/best.pt")
    for words, told in {
        (*source("model", "nowhere"),): "nowhere is no run",
        (*source("model", "begun"),): "has no checkpoint yet",
        (*source("model", "older"),): "does not tell what its run is. Train it anew",
        (*source("model", "new"),): "is the folder of this run itself",
        ("algo.source=source",): "Add algo.mode=feature, model or target",
        ("algo.mode=model",): "Name it, as algo.source=RUN_DIR",
        (*source("model"), "data.size=16"): "inputs of shape [1, 12, 12], and the data of this run has [1, 16, 16]",
        (*source("feature"), "backbone.channels=[3,5]"): "algo.source has another network: trunk.blocks.1.conv.weight",
        (*source("feature"), "backbone.stride=1", "backbone.pool=2"): "make other features of an image",
        (*source("model"), "algo.phases={1:{layer_rate:0.5}}"): "asks for other weights, or rates of them",
        ("algo=maml", "+algo.source=source"): "algo=maml takes over from no run",
    }.items():
        refused = finished(*words, "hydra.run.dir=new")
        assert refused.code == 2 and told in refused.err and refused.err.count("\n") == 1, refused.err
        assert not Path("new").exists()
    write_images(Path("others"), groups=5)
    refused = finished(*source("target"), "data.root=others", "hydra.run.dir=new")
    assert refused.code == 2 and "no output layer for the classes that this run trains" in refused.err
    assert refused.err.count("\n") == 1 and not Path("new").exists()


def test_a_strangers_source_runs_no_code(finished: Command) -> None:
    content = saved("source", "best.pt")
    content["run"]["config"]["backbone"] = {"_target_": "os.mkdir", "path": "made"}
    torch.save(content, "source/checkpoints/best.pt")
    refused = finished(*source("model"), "hydra.run.dir=new", "backbone=conv2")
    assert refused.code == 2 and "neither metarun's nor found here: backbone._target_=os.mkdir" in refused.err
    assert not Path("made").exists() and not Path("new").exists()
