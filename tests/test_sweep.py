"""Sweeps: each combination is a run with a directory of its own, and one that fails takes no other with it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.data.sinusoid import Sinusoid
from metarun.tracking.trackers import Trackers


def statuses(sweep: str) -> dict[str, str]:
    """The name of each run's directory, and how the run ended."""
    return {f.parent.name: json.loads(f.read_text())["status"] for f in sorted(Path(sweep).glob("*/result.json"))}


def test_lists_ranges_and_groups_are_swept(quick: Callable[..., Any]) -> None:
    outcome = quick("-m", "algo=maml,reptile", "seed=range(0,2)", "name=four")
    assert outcome.code == 0 and outcome.err == ""
    (sweep,) = Path("outputs/sweeps").glob("*/*_four")
    assert statuses(str(sweep)) == {
        "0_algo=maml,seed=0": "completed",
        "1_algo=maml,seed=1": "completed",
        "2_algo=reptile,seed=0": "completed",
        "3_algo=reptile,seed=1": "completed",
    }


def test_a_sweep_is_called_by_what_it_sweeps(quick: Callable[..., Any]) -> None:
    quick("--multirun", "algo=maml,reptile", "train.steps=1")
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    assert sweep.name.endswith("_maml,reptile_sinusoid")


def test_a_sweep_that_a_yaml_asks_for_names_its_jobs_as_one_that_is_typed(
    metarun: Callable[..., Any], quick: Callable[..., Any]
) -> None:
    Path("conf/experiment").mkdir(parents=True)
    asked = '{hydra: {mode: MULTIRUN, sweeper: {params: {seed: "0,1"}}}}'
    Path("conf/experiment/two.yaml").write_text(f"# @package _global_\n{asked}\n")
    assert quick("experiment=two", "hydra.sweep.dir=sweep").code == 0
    assert statuses("sweep") == {"0_seed=0": "completed", "1_seed=1": "completed"}
    assert metarun("resume=sweep/1_seed=1", "train.steps=3").code == 0  # that one alone
    assert json.loads(Path("sweep/1_seed=1/result.json").read_text())["steps"] == 3


def test_a_failed_job_is_told_at_once_and_the_others_finish(quick: Callable[..., Any]) -> None:
    outcome = quick("-m", "algo=maml,protonet", "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    first, second, last = outcome.err.splitlines()
    assert first.startswith(
        "metarun: job 2 (algo=protonet,seed=0) failed: this algorithm tells the classes of one head"
    )
    assert second.startswith(
        "metarun: job 3 (algo=protonet,seed=1) failed: this algorithm tells the classes of one head"
    )
    assert last == "metarun: 2 of 4 jobs failed."
    assert list(statuses("sweep").values()) == ["completed", "completed"]  # what never began leaves nothing


def test_a_job_with_a_bug_shows_its_traceback_and_the_others_finish(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Sinusoid.load

    def fail(self: Sinusoid, device: Any) -> Any:
        if self.shots == 7:
            raise RuntimeError("a bug")
        return load(self, device)

    monkeypatch.setattr(Sinusoid, "load", fail)
    outcome = quick("-m", "data.shots=7,8", "hydra.sweep.dir=sweep")
    assert outcome.code == 1 and "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1] == "metarun: 1 of 2 jobs failed."
    assert list(statuses("sweep").values()) == ["failed", "completed"]


def test_ctrl_c_stops_the_whole_sweep(quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trackers, "step", lambda self, step: signal.raise_signal(signal.SIGINT))
    outcome = quick("-m", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert outcome.code == 130
    goes_on = "To go on: metarun resume=sweep/0_seed=0; the jobs after it did not run"
    assert outcome.err == f"metarun: stopped by Ctrl-C. {goes_on}\n"
    assert statuses("sweep") == {"0_seed=0": "interrupted"}


def test_a_job_of_a_sweep_goes_on_by_itself(metarun: Callable[..., Any], quick: Callable[..., Any]) -> None:
    quick("-m", "algo=maml,reptile", "algo.inner_lr=0.01,0.02", "hydra.sweep.dir=sweep")
    folder = "sweep/3_algo.inner_lr=0.02,algo=reptile"
    assert metarun(f"resume={folder}", "train.steps=3").code == 0
    result = json.loads(Path(folder, "result.json").read_text())
    assert (result["algo"], result["steps"]) == ("reptile", 3)
    config = yaml.safe_load(Path(folder, ".hydra/config.yaml").read_text())
    assert config["algo"]["inner_lr"] == 0.02


def test_a_directory_that_holds_a_sweep_is_refused(quick: Callable[..., Any]) -> None:
    quick("-m", "seed=0,1", "train.steps=1", "hydra.sweep.dir=sweep")
    outcome = quick("-m", "seed=2,3", "hydra.sweep.dir=sweep")
    assert outcome.code == 2 and "hydra.sweep.dir=sweep" in outcome.err
