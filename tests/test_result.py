from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun import result
from metarun.build import Parts, build
from metarun.engine.mapping import Parallel
from metarun.loop import State
from metarun.settings import Job

SMALL = ("device=cpu", "data=folder", "data.size=12", "data.colour=false", "data.ways=2", "backbone.channels=[4,4,4,4]")


@pytest.fixture
def parts(
    job: Callable[..., Job], write_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Job, Parts]]:
    """parts("norm_stats=support", ...): a run on small images, built."""
    root = write_images(tmp_path / "images")
    return lambda *overrides: (made := job(*SMALL, f"data.root={root}", *overrides), build(made))


def protocol(parts: tuple[Job, Parts]) -> dict[str, Any]:
    return result.facts(*parts, {})["protocol"]


def test_before_it_begins_a_run_has_failed(job: Callable[..., Job]) -> None:
    record = result.blank(job("data=omniglot", "seed=7"))
    assert record["status"] == "failed" and record["seed"] == 7 and record["steps"] == 0
    assert (record["algo"], record["data"], record["backbone"]) == ("maml", "omniglot", "conv4")
    assert all(record[key] is None for key in ("error", "device", "params", "test", "val", "protocol", "cost"))
    assert record["versions"]["metarun"] == metarun.__version__
    assert record["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("overrides", "norm"),
    [
        (["norm_stats=batch"], "batch statistics of the query set (transductive)"),
        (["norm_stats=support"], "batch statistics of the support set (inductive)"),
        (["norm_stats=batch", "backbone.norm=group"], "no batch statistics"),
    ],
)
def test_the_protocol_says_where_normalisation_takes_its_statistics(
    overrides: list[str], norm: str, parts: Callable[..., tuple[Job, Parts]]
) -> None:
    assert protocol(parts(*overrides))["norm"] == norm


def test_the_protocol_is_that_of_the_test_not_of_training(parts: Callable[..., tuple[Job, Parts]]) -> None:
    found = protocol(parts("test.shots=2", "test.queries=3", "train.shots=5", "test.adapt_steps=7"))
    assert (found["ways"], found["shots"], found["queries"], found["adapt_steps"]) == (2, 2, 3, 7)
    assert found["split"].startswith("random (seed 0)") and found["rotations"] == "none"
    assert found["episodes"].startswith("sha256:") and "test_data" not in found


def test_the_header_names_what_is_trained_on_and_what_is_tested_on(
    parts: Callable[..., tuple[Job, Parts]], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_images(tmp_path / "elsewhere", groups=1, classes=3)
    made, built = parts("test.data=folder", f"test.root={other}", "test.shots=2")
    facts = result.header(made, built, result.blank(made) | result.facts(made, built, {}))
    assert facts["data"] == "folder, random (seed 0): 10/3/3 classes"
    assert facts["test data"] == "folder elsewhere, 2-way 2-shot, all: 3 classes"
    assert protocol((made, built))["test_data"] == "folder elsewhere"
    alone = result.header(*parts(), result.blank(made) | result.facts(made, built, {}))
    assert "test data" not in alone and alone["data"].startswith("folder, 2-way")


def test_the_header_names_the_run_as_one_would_type_it(
    parts: Callable[..., tuple[Job, Parts]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, built = parts()
    record = result.blank(made) | result.facts(made, built, {})
    monkeypatch.chdir(tmp_path)
    assert result.header(made, built, record)["run"] == "run"


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        ([], ""),
        (["algo=mtl"], "1- to 4-way"),
        (["algo=transfer"], "10-way"),
        (["algo=protonet", "train.ways=4"], "4-way"),
    ],
)
def test_what_accuracies_are_of_is_told_where_training_differs_from_validation(
    parts: Callable[..., tuple[Job, Parts]], overrides: list[str], trained: str
) -> None:
    made, built = parts(*overrides)
    assert result.ways(built) == ({"train": trained, "val": "2-way", "test": "2-way"} if trained else {})
    header = result.header(made, built, result.blank(made) | result.facts(made, built, {}))
    assert ("-way" in header["training"]) == bool(trained) and trained in header["training"]


def test_parameters_are_counted(parts: Callable[..., tuple[Job, Parts]]) -> None:
    """Convolutions 1·4·9 and 3 (4·4·9), four norms of 8, an output layer of 2 (4 + 1): 510."""
    made, built = parts()
    params = {**built.algo(0).init(torch.Generator()), "memory.kept": torch.zeros(9), "now.step": torch.zeros(())}
    assert result.facts(made, built, params)["params"] == 36 + 3 * 144 + 32 + 10


def test_progress_without_a_validation_has_no_score(parts: Callable[..., tuple[Job, Parts]]) -> None:
    state = State({}, torch.optim.SGD([torch.ones(1)], lr=1.0), Parallel("vmap", 8), step=3, seconds=1.23456)
    found = result.progress(*parts(), state)
    assert found["val"] is None and found["steps"] == 3
    assert found["cost"]["train_s"] == 1.235 and found["cost"]["parallel"] == "vmap chunk 8"
    state.best = {"step": 2, "score": 0.5, "val": {"accuracy": {"mean": 0.5}}}
    assert result.progress(*parts(), state)["val"] == {"accuracy": {"mean": 0.5}, "step": 2}


def test_hyperparameters_are_flat_and_of_the_kinds_tensorboard_takes(job: Callable[..., Job]) -> None:
    made = job("data=sinusoid", "algo.inner_lr=0.02", "seed=4")
    flat = made.hparams()
    assert flat["algo"] == "maml" and flat["algo.inner_lr"] == 0.02 and flat["seed"] == 4
    assert not any("_target_" in key for key in flat)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_the_commit_is_that_of_the_checkout(job: Callable[..., Job]) -> None:
    commit = result.blank(job())["versions"]["git"]
    if commit is None:
        pytest.skip("metarun runs from no checkout")
    assert re.fullmatch(r"([\w.-]+-g)?[0-9a-f]{7,40}(-dirty)?|v?[\w.]+(-dirty)?", commit)
