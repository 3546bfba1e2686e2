from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_origin

import pytest
import torch

import metarun
from metarun import result
from metarun.build import Parts, build
from metarun.construct import PROTOCOL, hints_of, target_of
from metarun.engine.mapping import Parallel
from metarun.evaluate import Verdict
from metarun.run import first_params
from metarun.settings import Job
from metarun.state import State

SMALL = ("device=cpu", "data=folder", "data.size=12", "data.colour=false", "data.ways=2", "backbone.channels=[4,4,4,4]")


@pytest.fixture
def parts(
    job: Callable[..., Job], write_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Job, Parts]]:
    """parts("norm_stats=support", ...): a run on small images, built."""
    root = write_images(tmp_path / "images")
    return lambda *overrides: (made := job(*SMALL, f"data.root={root}", *overrides), build(made))


def protocol(parts: tuple[Job, Parts]) -> dict[str, Any]:
    return result.facts(*parts, first_params(*parts))["protocol"]


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
        (["norm_stats=batch"], "batch statistics of the query set"),
        (["norm_stats=support"], "batch statistics of the support set"),
        (["norm_stats=batch", "backbone.norm=group"], "no batch statistics"),
    ],
)
def test_the_protocol_says_where_normalisation_takes_its_statistics(
    overrides: list[str], norm: str, parts: Callable[..., tuple[Job, Parts]]
) -> None:
    assert protocol(parts(*overrides))["norm"] == norm


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["norm_stats=batch"], True),
        (["norm_stats=support"], False),
        (["norm_stats=batch", "backbone.norm=group"], False),
        (["norm_stats=support", "algo=transfer"], False),
        (["algo=mtl", "test.adapt_steps=0"], True),
    ],
)
def test_the_protocol_says_whether_queries_are_predicted_together(
    overrides: list[str], told: bool, parts: Callable[..., tuple[Job, Parts]]
) -> None:
    assert protocol(parts(*overrides))["transductive"] is told


def test_the_protocol_is_that_of_the_test_not_of_training(parts: Callable[..., tuple[Job, Parts]]) -> None:
    found = protocol(parts("test.shots=2", "test.queries=3", "train.shots=5", "test.adapt_steps=7"))
    assert (found["ways"], found["shots"], found["queries"], found["adapt_steps"]) == (2, 2, 3, 7)
    assert found["split"].startswith("random (seed 0)") and found["rotations"] == "none"
    assert found["episodes"].startswith("sha256:") and "test_data" not in found


def test_what_chose_the_checkpoint_and_what_is_seen_are_named(parts: Callable[..., tuple[Job, Parts]]) -> None:
    found = protocol(parts())
    assert found["selection"] == "best validation accuracy" and found["input"] == "1x12x12"
    assert "with replacement from a finite set of images" in found["ci95"]


def test_the_silent_choices_of_an_algorithm_reach_the_protocol(
    algo_name: str, parts: Callable[..., tuple[Job, Parts]]
) -> None:
    """Those that carry the mark where they are defined, whatever they are."""
    made, built = parts(f"algo={algo_name}", "train.shots=2")
    section = made.sections["algo"]
    marks = {
        f"algo.{key}": section[key]
        for key, hint in hints_of(target_of(section, "algo")).items()
        if get_origin(hint) is Annotated and PROTOCOL in hint.__metadata__
    }
    found = protocol((made, built))
    assert {key: value for key, value in found.items() if key.startswith("algo.") and key in marks} == marks
    assert found["algo.trains_on"] in made.trains_on


def test_maml_names_its_inner_loss_and_its_norms_also_by_phase(parts: Callable[..., tuple[Job, Parts]]) -> None:
    found = protocol(parts("algo=maml", "algo.adapt_norm=false", "algo.phases={3:{inner_loss:sum,inner_lr:0.1}}"))
    assert (found["algo.inner_loss"], found["algo.adapt_norm"]) == ("mean", False)
    assert found["algo.phases.3.inner_loss"] == "sum" and "algo.phases.3.inner_lr" not in found


def test_the_size_of_training_tasks_is_named_where_there_are_such(parts: Callable[..., tuple[Job, Parts]]) -> None:
    drawn = protocol(parts("algo=protonet", "train.ways=3", "train.shots=4", "train.queries=2"))
    assert [drawn[f"train.{key}"] for key in ("ways", "shots", "queries")] == [3, 4, 2]
    fixed = protocol(parts("algo=mtl", "train.shots=4"))
    assert fixed["algo.trains_on"] == "group" and fixed["train.shots"] == 4 and "train.ways" not in fixed


def test_training_and_validation_data_are_told_apart_by_their_content(
    parts: Callable[..., tuple[Job, Parts]],
) -> None:
    one, other, same = (protocol(parts(f"data.split_seed={seed}")) for seed in (0, 1, 0))
    assert one == same and one["train.content"] != other["train.content"]
    assert len({one[key] for key in ("episodes", "val.episodes")} | {other["val.episodes"]}) == 3


def test_a_meta_test_on_other_data_still_names_what_training_was_on(
    parts: Callable[..., tuple[Job, Parts]], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    made, _ = parts()
    test_data = {**made.config["data"], "root": str(write_images(tmp_path / "other", groups=3))}
    config = {**made.config, "test": {**made.config["test"], "data": "folder"}}
    made = replace(made, config=config, test_data=test_data)
    found = protocol((made, build(made)))
    assert found["split"].endswith("12 classes") and found["train.split"].endswith("10/3/3 classes")
    assert found["rotations"] == found["train.rotations"] == "none"


def test_tasks_that_diverged_are_counted_at_the_end_and_by_step() -> None:
    score = {"accuracy": {"mean": 0.5, "ci95": 0.1, "tasks": 9}}
    found = result.test(Verdict(score, {0: score, 2: score}, 9, {0: 0, 2: 4}))
    assert (found["tasks"], found["diverged"], found["adapt_steps"]) == (9, 4, 2)
    assert [row["diverged"] for row in found["by_step"]] == [0, 4]


def test_the_header_names_what_is_trained_on_and_what_is_tested_on(
    parts: Callable[..., tuple[Job, Parts]], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_images(tmp_path / "elsewhere", groups=1, classes=3)
    made, built = parts("test.data=folder", f"test.root={other}", "test.shots=2")
    facts = result.header(made, built, result.blank(made) | result.facts(made, built, first_params(made, built)))
    assert facts["data"] == "folder, random (seed 0): 10/3/3 classes"
    assert facts["test data"] == "folder elsewhere, 2-way 2-shot, all: 3 classes"
    assert protocol((made, built))["test_data"] == "folder elsewhere"
    alone = result.header(*parts(), result.blank(made) | result.facts(made, built, first_params(made, built)))
    assert "test data" not in alone and alone["data"].startswith("folder, 2-way")


def test_the_header_names_the_run_as_one_would_type_it(
    parts: Callable[..., tuple[Job, Parts]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, built = parts()
    record = result.blank(made) | result.facts(made, built, first_params(made, built))
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
    header = result.header(made, built, result.blank(made) | result.facts(made, built, first_params(made, built)))
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
