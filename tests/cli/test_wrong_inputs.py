"""Absurd and impossible command lines: each is answered by one line, exit code 2, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = "x" * 5000
VAST = 10**12

KINDS: dict[str, list[tuple[list[str], list[str]]]] = {
    "seeds": [
        ([f"seed={2**64}"], ["seed=", "64 bits"]),
        (["data=glyphs", f"data.seed={2**63}"], ["data.seed=", "64 bits"]),
        (["test.seed=-1"], ["test.seed=-1", "0 or more"]),
    ],
    "groups": [
        (["algo=null"], ["algo=null", "maml", "reptile"]),
        (["data=null"], ["data=null", "glyphs"]),
        (["backbone=null"], ["backbone=null", "conv4"]),
        (["schedule=null"], ["schedule=null", "cosine"]),
        (["balance=3"], ["balance=3", "famo"]),
        (["data=5"], ["data=5", "glyphs"]),
        (["data=[glyphs,omniglot]"], ["data"]),
        (["algo=true"], ["algo=true", "maml"]),
        (["algo="], ["algo=", "maml"]),
        (["-m", "algo=maml,null"], ["algo=null", "reptile"]),
        (["test.data=5"], ["test.data=5", "glyphs"]),
        (["test.data=[a]"], ["test.data=['a']", "a text"]),
        (["hydra=5"], ["hydra=5", "section"]),
        (["++hydra=null"], ["hydra=null", "section"]),
        (["optim=null"], ["optim=null", "adam"]),
        (["device=7"], ["device=7", "cpu"]),
        (["experiment=1"], ["experiment=1", "omniglot_lake"]),
    ],
    "sections": [
        (["++optm.lr=5"], ["optm", "optim"]),
        (["+paths.a=1"], ["paths"]),
        (["~backbone"], ["backbone"]),
        (["++test=5"], ["test=5", "test.key=value"]),
        (["algo.trains_on=5"], ["algo.trains_on=5", "a text or a list"]),
        (["algo.trains_on=[]"], ["algo.trains_on", "episodes"]),
        (["algo=mtl", "algo.trains_on=episodes"], ["algo.trains_on=episodes", "group or rows"]),
        (["algo=protonet", "algo.trains_on=group"], ["algo.trains_on=group", "episodes"]),
        (["algo.phases=5"], ["algo.phases=5"]),
        (
            ["algo=mamlpp", "algo.phases={1:{inner_steps:2}}"],
            ["algo.phases={1: {inner_steps: 2}} asks for other weights"],
        ),
        (["algo.phases={0:{first_order:true}}"], ["algo.phases", "5000"]),
        (["+algo.phases={5:{first_order:3}}"], ["algo.phases.5.first_order=3", "true or false"]),
    ],
    "absurd": [
        (["train.clip_norm=0"], ["train.clip_norm=0", "more than 0"]),
        (["optim.lr=1e300"], ["optim.lr=1e+300", "32-bit"]),
        (["optim.eps=inf"], ["optim.eps=inf", "not finite"]),
        (["schedule.warmup=3"], ["schedule.warmup=3", "train.steps=2"]),
        (["schedule=step", "schedule.factor=1e30", "schedule.every=1", "train.steps=99"], ["schedule", "factor"]),
        (["device.threads=100000"], ["device.threads=100000", "less than"]),
        (["name=../../x"], ["name=../../x", "folder"]),
        ([f"name={LONG}"], ["name=xxx", "at most"]),
        (["algo=r2d2", "data=glyphs", "algo.ridge=0"], ["algo.ridge=0", "more than 0"]),
        (["optim.betas=[a,b]"], ["optim.betas=", "2 numbers"]),
        (["optim.betas=[1.0,1.0]"], ["optim", "beta"]),
        (["+optim.fused=true", "+optim.foreach=true"], ["optim", "fused"]),
        (["+optim.capturable=true"], ["optim", "apturable"]),
        (["optim=nesterov", "optim.momentum=0"], ["optim", "momentum"]),
    ],
    "too much for the memory": [
        ([f"test.tasks={VAST}"], [f"test.tasks={VAST}", "GB"]),
        ([f"val.tasks={VAST}"], [f"val.tasks={VAST}", "GB"]),
        ([f"train.tasks={VAST}"], [f"train.tasks={VAST}", "GB"]),
        ([f"train.shots={VAST}"], [f"train.shots={VAST}", "less than 1000001"]),
        (["test.tasks=9000000000000000000"], ["test.tasks=", "counted"]),
        ([f"data.queries={VAST}"], [f"train.queries={VAST}", "less than 1000001"]),
        (["train.shots=1000000", "train.tasks=1000000"], ["train.tasks=1000000 with", "train.shots=1000000", "GB"]),
        (["backbone.hidden=[1000000000]"], ["backbone=", "GB"]),
        (["backbone.hidden=[9000000000000000000]"], ["backbone="]),
        (["data=glyphs", "backbone=conv4", f"data.alphabets={VAST}"], [f"data.alphabets={VAST}", "GB"]),
        (["data=glyphs", "backbone=conv4", f"data.drawings={VAST}"], [f"data.drawings={VAST}", "GB"]),
    ],
    "targets": [
        (["algo._target_=metarun.algos.maml"], ["algo._target_=metarun.algos.maml", "a module"]),
        (["algo._target_=metarun.algos.mamlpp.MOMENTUM"], ["MOMENTUM is a float"]),
        (["algo._target_=metarun.maths.inner.sgd"], ["metarun.maths.inner.sgd takes no net"]),
        (["algo._target_=metarun.types.Algorithm"], ["interface"]),
        (["algo._target_=5"], ["algo._target_=5"]),
        (["algo._target_=builtins.dict"], ["algo._target_=builtins.dict"]),
        (["algo._target_=os.system"], ["os.system takes no net"]),
        (["backbone._target_=torch.nn.Linear"], ["torch.nn.Linear takes no shape"]),
        (["backbone._target_=metarun.backbones"], ["a module"]),
        (["optim._target_=torch.optim"], ["optim._target_=torch.optim", "a module"]),
        (["optim._target_=metarun.optim.schedules.cosine"], ["takes no params"]),
        (["schedule._target_=torch.optim.Adam"], ["torch.optim.Adam takes no step"]),
        (["schedule._target_=pathlib.Path", "~schedule.final", "~schedule.warmup"], ["schedule: ", "all steps."]),
        (["data._target_=fractions.Fraction"], ["data."]),
        (["optim=sam", "optim.base._target_=torch.optim"], ["optim.base._target_=torch.optim", "a module"]),
        (["optim=sam", "optim.base=5"], ["optim.base=5"]),
    ],
    "long paths": [
        ([f"resume={LONG}"], ["xxx", "longer path"]),
        ([f"hydra.run.dir={LONG}"], ["xxx", "longer path"]),
        (["data=folder", f"data.root={LONG}"], ["xxx", "does not exist"]),
        ([f"train.max_time={LONG}"], ["train.max_time=xxx", "... is no time"]),
        (["data=omniglot", f"data.root={LONG}"], ["xxx", "has no Omniglot"]),
        (["--config-dir", LONG], ["xxx", "longer path"]),
        ([f"{LONG}=1"], ["xxx"]),
    ],
    "flags": [
        (["--info"], ["--info is no flag"]),
        (["resume=~nobody-such"], ["~nobody-such is no run"]),
        (["-sc"], ["-sc", "install=bash"]),
        (["-sc", "install=tcsh"], ["install=bash"]),
        (["--resolve"], ["--resolve", "--cfg job"]),
        (["-r", "-m"], ["--run and --multirun"]),
        (["-m", "seed=1,2", "--cfg", "job"], ["--multirun and --cfg"]),
        (["--cfg"], ["--cfg", "value"]),
        (["--cfg", "jobs"], ["--cfg jobs", "job, hydra, all"]),
        (["--config-dir"], ["--config-dir", "value"]),
        (["--config-dir=/nonexist"], ["--config-dir /nonexist", "no such folder"]),
        (["--config-name", "nope"], ["nope.yaml", "--config-name"]),
        (["--train.steps=5"], ["--train.steps=5", "without dashes: train.steps=5"]),
        (["--package", "optim"], ["--package"]),
    ],
    "words": [
        (["train.steps", "=", "5"], ["train.steps =", "no blanks"]),
        (["train.steps=", "5"], ["train.steps= 5", "no blanks"]),
        (["train.steps", "=5"], ["train.steps =5", "no blanks"]),
        (["-m", "+hydra.sweeper.params.seed=1"], ["hydra.sweeper.params", "-m seed=0,1"]),
        (["hydra.run=5"], ["hydra.run"]),
        (["hydra.job=null"], ["hydra.job"]),
        (["hydra.mode=5"], ["hydra.mode"]),
    ],
}


@pytest.mark.parametrize(
    ("typed", "words"),
    [pytest.param(*case, id=f"{kind}: {' '.join(case[0])[:60]}") for kind, cases in KINDS.items() for case in cases],
)
def test_it_is_answered_in_one_line(quick: Callable[..., Any], typed: list[str], words: list[str]) -> None:
    outcome = quick(*typed)
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("metarun: ") and outcome.err.count("\n") == 1, outcome.err
    assert len(outcome.err) < 1000
    for word in words:
        assert word in outcome.err, (word, outcome.err)
    assert not [*Path().rglob("*.pt")] and not [*Path().parent.glob("x")]
