"""The parts of a run, built from its job. Behind this door there is no config."""

from __future__ import annotations

import inspect
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarun.construct import check, construct, prepared, shown, target_of
from metarun.data.draw.source import ImageData
from metarun.engine.compile import Compiled, check_compiler
from metarun.engine.device import allow_tf32, pick
from metarun.errors import UserError
from metarun.evaluate import Exam, milestones
from metarun.maths.net import Net
from metarun.settings import Job
from metarun.types import Algorithm, Data, MetaGradient, Optimizer, Sampler

_KEY = re.compile(r"(?<![\w./])data\.(\w+)(?=[=.\s])")


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
        val=test if job.only_tests else _exam(job, data, "val", job.val.tasks, job.val.seed, [steps]),
        test=test,
        optimizer=lambda params: construct(sections["optim"], "optim", params=params),
        factor=prepared(sections["schedule"], "schedule", "step", "steps"),
    )


def _load(job: Job, device: torch.device) -> tuple[Data, Data]:
    """The data set that is trained on, and the one that is tested on."""
    _check_test_data(job)
    data = construct(job.sections["data"], "data").load(device)
    if job.test_data is None:
        return data, data
    other = _tested_on(job, data.shape, device)
    if other.shape != data.shape:
        raise UserError(
            f"test.data={job.test.data} has inputs of shape {list(other.shape)}, the training data "
            f"{list(data.shape)}: a meta-test across data sets needs the same."
        )
    if isinstance(data, ImageData) and isinstance(other, ImageData) and (seen := other.trained_in(data)):
        raise UserError(
            f"test.data={job.test.data} would test on classes that the run trains or validates on: {len(seen)} of "
            f"them, such as {seen[0]}. Leave test.data out to test on the others, or name another test.root."
        )
    return data, other


def _check_test_data(job: Job) -> None:
    """Refuses keys of another data set for the meta-test, before any is loaded."""
    if job.test_data is not None:
        check({**job.test_data, **(job.test.keys or {})}, "test.keys")
        return
    for key, value in (("root", job.test.root), ("keys", job.test.keys)):
        if value is not None:
            raise UserError(
                f"test.{key}={shown(value)} is about the data set that test.data names. Name it, as test.data=folder."
            )


def _tested_on(job: Job, shape: tuple[int, ...], device: torch.device) -> Data:
    """Another data set for the meta-test, with its own keys where they were typed. Else its images are made the size
    and colour of the run's, and all that it has is for tasks of the test."""
    assert job.test_data is not None
    test = job.test
    fitting: dict[str, Any] = {"ways": test.ways, "shots": test.shots, "queries": test.queries, "splits": ["test"]}
    if len(shape) == 3:
        fitting |= {"size": shape[1], "colour": shape[0] == 3}
    own = {key: value for key, value in fitting.items() if key in job.test_data}
    try:
        return construct({**job.test_data, **own, **(test.keys or {})}, "test.keys").load(device)
    except UserError as error:
        raise UserError(_KEY.sub(_as_typed, str(error))) from error


def _as_typed(found: re.Match[str]) -> str:
    """A key of `data` in an error, as the same key of the meta-test's data set is typed."""
    return f"test.{found[1]}" if found[1] in ("root", "ways", "shots", "queries") else f"test.keys.{found[1]}"


def _training(job: Job, data: Data) -> Sampler:
    """Draws what the algorithm trains on: the first of its ways that the data set offers."""
    by = next((way for way in job.trains_on if way in data.offers), job.trains_on[0])  # which is then refused
    train = job.train
    if by == "episodes":
        return data.episodes("train", train.ways, train.shots, train.queries, job.owner("train"))
    return data.tasks(by, train.shots)


def _exam(job: Job, data: Data, split: str, tasks: int, seed: int, marks: list[int]) -> Exam:
    """Fixed episodes, drawn on the CPU, where a seed means the same on every machine."""
    test = job.test
    sampler = data.episodes(split, test.ways, test.shots, test.queries, job.owner("test"))
    return Exam(sampler, sampler.draw(tasks, torch.Generator().manual_seed(seed)), test.adapt_steps, marks)


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
        return programs.setdefault(id(found), Compiled(found))

    return at
