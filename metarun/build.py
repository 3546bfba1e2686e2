"""The parts of a run, built from its job. Behind this door there is no config."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarun.construct import construct, prepared, target_of
from metarun.engine.compile import Compiled, check_compiler
from metarun.engine.device import allow_tf32, pick
from metarun.errors import UserError
from metarun.evaluate import Exam, dice, milestones
from metarun.maths.net import Net
from metarun.settings import Job
from metarun.types import Algorithm, Data, MetaGradient, Optimizer, Sampler


@dataclass(frozen=True)
class Parts:
    """All that a run needs, ready to train and to test."""

    device: torch.device
    data: Data
    test_data: Data
    algo: Callable[[int], Algorithm]  # in force at a step, with the heads that it trains on
    trained: Callable[[int], MetaGradient]  # the same as it is run: compiled where that is asked for
    tested: Callable[[int], Algorithm]  # with the heads that it is tested on
    sampler: Sampler
    val: Exam
    test: Exam
    optimizer: Callable[[list[Tensor]], Optimizer]
    factor: Callable[[int, int], float]  # of the learning rate


def build(job: Job) -> Parts:
    job.check()
    root, sections = job.root, job.sections
    device = construct(sections["device"], "device", pick)
    allow_tf32(root.precision == "tf32")
    if root.compile:
        check_compiler(device)
    data, other = _load(job, device)
    sampler = _training(job, data)
    steps = job.test.adapt_steps
    test = _exam(job, other, "test", job.test.tasks, job.test.seed, milestones(steps))
    val = _exam(job, data, "val", job.val.tasks, job.val.seed, [steps])
    _refuse_shared(val, test, job)
    make_trunk = partial(prepared(sections["backbone"], "backbone", "shape"), shape=data.shape)
    net = Net.build(make_trunk, sampler.heads, root.norm_stats, root.precision == "bf16").to(device)
    algo = _by_phase(job, net)
    return Parts(
        device=device,
        data=data,
        test_data=other,
        algo=algo,
        trained=_compiled(algo) if root.compile else algo,
        tested=_by_phase(job, net.testing(test.sampler.heads)),
        sampler=sampler,
        val=val,
        test=test,
        optimizer=lambda params: construct(sections["optim"], "optim", params=params),
        factor=prepared(sections["schedule"], "schedule", "step", "steps"),
    )


def _load(job: Job, device: torch.device) -> tuple[Data, Data]:
    """The data set that is trained on, and the one that is tested on."""
    data = construct(job.sections["data"], "data").load(device)
    if job.test_data is None:
        return data, data
    other = construct(job.test_data, "test.data").load(device)
    if other.shape != data.shape:
        raise UserError(
            f"test.data={job.test.data} has inputs of shape {list(other.shape)}, the training data "
            f"{list(data.shape)}: a meta-test across data sets needs the same."
        )
    if data.fingerprint == other.fingerprint:
        _refuse_known(job, data, other)
    return data, other


def _refuse_known(job: Job, data: Data, other: Data) -> None:
    """Two splits of the same images: what is a test class of one may be a training class of the other."""
    trained = {name for split in ("train", "val") for name in data.classes.get(split, ())}
    tested = other.classes.get("test", ())
    if known := sum(name in trained for name in tested):
        raise UserError(
            f"test.data={job.test.data}: {known} of its {len(tested)} test classes are training or validation classes "
            f"of data={job.choices['data']}, whose images are the same. Split both alike, or leave test.data out."
        )


def drawn_by(job: Job, data: Data) -> str:
    """How training tasks are drawn: in the first of the algorithm's ways that the data set offers."""
    return next((way for way in job.trains_on if way in data.offers), job.trains_on[0])  # which is then refused


def _training(job: Job, data: Data) -> Sampler:
    """Draws what the algorithm trains on."""
    by, train = drawn_by(job, data), job.train
    if by == "episodes":
        return data.episodes("train", train.ways, train.shots, train.queries, job.owner("train"))
    return data.tasks(by, train.shots)


def _exam(job: Job, data: Data, split: str, tasks: int, seed: int, marks: list[int]) -> Exam:
    """Fixed episodes of a split."""
    test = job.test
    sampler = data.episodes(split, test.ways, test.shots, test.queries, job.owner("test"))
    return Exam(sampler, sampler.draw(tasks, dice(split, seed)), test.adapt_steps, marks)


def _refuse_shared(val: Exam, test: Exam, job: Job) -> None:
    """What chooses the checkpoint must not be what it is judged by."""
    if shared := len(set(val.tasks) & set(test.tasks)):
        raise UserError(
            f"val.seed={job.val.seed} and test.seed={job.test.seed}: {shared} of the {len(val.tasks)} validation tasks "
            f"are test tasks too. Let data={job.choices['data']} deal other tasks to val than to test."
        )


def _by_phase(job: Job, net: Net) -> Callable[[int], Algorithm]:
    """The algorithm in force at a step: from each step that `algo.phases` names on, with other keys."""
    section, given = job.sections["algo"], {"net": net, **_balance(job)}
    starts, algos = [0], [construct(section, "algo", **given)]
    for step, changes in job.phases.items():
        section = {**section, **changes}
        starts.append(step)
        algos.append(construct(section, f"algo.phases.{step}", **given))
    return lambda step: algos[bisect_right(starts, step) - 1]


def _balance(job: Job) -> dict[str, Any]:
    """The balance, for an algorithm that takes one."""
    takes = "balance" in inspect.signature(target_of(job.sections["algo"], "algo")).parameters
    section = job.sections.get("balance")
    if section and not takes:
        raise UserError(
            f"balance={job.choices['balance']}: algo={job.choices['algo']} has no losses to weigh. Leave balance out."
        )
    if takes and not section:
        raise UserError(f"algo={job.choices['algo']} weighs several losses: name a balance, as balance=equal.")
    return {"balance": construct(section, "balance")} if section else {}


def _compiled(algo: Callable[[int], Algorithm]) -> Callable[[int], MetaGradient]:
    """Each phase's algorithm compiled, once."""
    programs: dict[int, Compiled] = {}

    def at(step: int) -> Compiled:
        found = algo(step)
        if id(found) not in programs:
            programs[id(found)] = Compiled(found)
        return programs[id(found)]

    return at
