"""The parts of a run, built from its job. Behind this door there is no config."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from metarun.construct import construct, prepared, shown, takes
from metarun.data.draw.offers import one_size
from metarun.datasets import loaded
from metarun.engine.compile import check_compiler, traced
from metarun.engine.device import allow_tf32, pick
from metarun.engine.room import Room
from metarun.errors import UserError, one_line
from metarun.evaluate import AT_ONCE, Exam, dice, milestones
from metarun.interface import check_algorithm, check_params, check_sample, check_trunk, fulfilled, is_own
from metarun.maths.net import Net
from metarun.maths.penalty import Penalty
from metarun.maths.source import Pretrained
from metarun.pretrained import pretrained
from metarun.settings import Job
from metarun.types import Algorithm, Balance, Data, Draw, MetaGradient, Optimizer, Reserved, Sampler, paces


@dataclass(frozen=True)
class Parts:
    """All that a run needs, ready to train and to test."""

    device: torch.device
    data: Data
    test_data: Data
    algo: Callable[[int], Algorithm]  # in force at a step, with the heads that it trains on
    trained: Callable[[int], MetaGradient]  # the same as it is run: with the network's penalty, and as one program
    tested: Callable[[int], Algorithm]  # with the heads that it is tested on
    sampler: Sampler
    val: Exam
    test: Exam
    optimizer: Callable[[list[Any]], Optimizer]  # of tensors, or of groups of them
    factor: Callable[[int, int], float]  # of the learning rate
    source: Pretrained | None  # the network of the run that algo.source names


def build(job: Job) -> Parts:
    job.check()
    root, sections = job.root, job.sections
    device = construct(sections["device"], "device", pick)
    allow_tf32(root.precision == "tf32")
    if root.compile is True:
        check_compiler(device)
    factor, optimizer = _factor(job), _optimizer(job, device)
    data, other = loaded(job, device)
    sampler = _training(job, data, device)
    steps = job.test.adapt_steps
    test = _exam(job, other, "test", job.test.tasks, job.test.seed, milestones(steps))
    val = test
    if not job.only_tests:  # which asks nothing of validation
        val = _exam(job, data, "val", job.val.tasks, job.val.seed, [steps])
        _refuse_shared(val, test, job)
    net = _net(job, data, sampler).to(device)
    _check_statistics(job, net)
    source = pretrained(job, data, sampler.heads, device) if job.source else None
    algo, tested = by_phase(job, net, source), by_phase(job, net.testing(test.sampler.heads), source)
    check_sample(algo(0), sampler.gather(sampler.draw(1, torch.Generator())), drawn_by(job, data))
    _check_algorithm(algo(0), tested(0), sampler, test, device)
    _check_phases(job, algo)
    if job.train.steps and isinstance(first := algo(0), Reserved):
        first.check_trainable()
    return Parts(
        device=device,
        data=data,
        test_data=other,
        algo=algo,
        trained=_trained(job, algo, net, device),
        tested=tested,
        sampler=sampler,
        val=val,
        test=test,
        optimizer=optimizer,
        factor=factor,
        source=source,
    )


def _factor(job: Job) -> Callable[[int, int], float]:
    """The schedule, tried on the first and the last step."""
    factor = prepared(job.sections["schedule"], "schedule", "step", "steps")
    for step in (0, job.train.steps - 1) if job.train.steps else ():
        try:
            found = factor(step, job.train.steps)
        except OverflowError:
            found = math.inf
        except TypeError as error:
            raise UserError(
                f"schedule: {one_line(error).rstrip('.')}. Name a function of a step and of the number of all steps."
            ) from error
        if not isinstance(found, float | int) or not 0 <= found < math.inf:
            raise UserError(f"schedule: the factor of step {step} is {found}. Let it be a number of 0 or more.")
    return factor


def _optimizer(job: Job, device: torch.device) -> Callable[[list[Any]], Optimizer]:
    """Makes the outer optimiser. It is tried on one number: some options torch refuses only when it steps."""
    made = partial(construct, job.sections["optim"], "optim")
    trial = torch.zeros(1, device=device)
    trial.grad = torch.zeros_like(trial)
    try:
        fulfilled(made(params=[trial]), Optimizer, "optim").step(lambda: trial.grad)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"optim: {one_line(error).rstrip('.')}. Change that key of optim.") from error
    return lambda params: made(params=params)


def _training(job: Job, data: Data, device: torch.device) -> Sampler:
    """Draws what the algorithm trains on. A step's tasks are drawn once, to see that there is room for them."""
    train, sampler, owner = job.train, _sampler(job, data), job.owner("train")
    words = f"train.tasks={train.tasks} with {owner}.shots={train.shots} and {owner}.queries={train.queries}"
    with Room(words, "Lower one of them") as room:
        draw = sampler.draw(train.tasks, torch.Generator(device).manual_seed(0))
        _check_room(room, sampler, draw, len(next(iter(draw.values()))) // job.team.size)
    return sampler


def _check_room(room: Room, sampler: Sampler, draw: Draw, at_once: int) -> None:
    """Refuses a draw of which so many entries, gathered at once, would not fit into memory."""
    one = tree_leaves(sampler.gather({name: lots[:1] for name, lots in draw.items()}))
    room.check(at_once * sum(t.nbytes for t in one), one[0].device)


def drawn_by(job: Job, data: Data) -> str:
    """How training tasks are drawn: in the first of the algorithm's ways that the data set offers."""
    return next((way for way in job.trains_on if way in data.offers), job.trains_on[0])  # which is then refused


def _sampler(job: Job, data: Data) -> Sampler:
    """Draws what the algorithm trains on."""
    by, train, owner = drawn_by(job, data), job.train, job.owner("train")
    nothing = next((section for section in ("train", "test") if job.config[section]["shots"] == 0), "")
    if nothing and (by == "episodes" or nothing == "train"):
        raise UserError(
            f"{job.owner(nothing)}.shots=0: algo={job.choices['algo']} learns from the shots of a task. Give some, as "
            f"{job.owner(nothing)}.shots=5."
        )
    if by == "episodes":
        return data.episodes("train", train.ways, train.shots, train.queries, owner)
    return data.tasks(by, one_size(f"{owner}.shots", train.shots, f"tasks drawn by {by}"))


def _exam(job: Job, data: Data, split: str, tasks: int, seed: int, marks: list[int]) -> Exam:
    """Fixed episodes of a split."""
    test, owner = job.test, job.owner("test")
    sampler = data.episodes(split, test.ways, test.shots, test.queries, owner)
    words = f"{split}.tasks={tasks} with {owner}.shots={test.shots} and {owner}.queries={test.queries}"
    with Room(words, "Lower one of them") as room:
        draw = sampler.draw(tasks, dice(split, seed))
        _check_room(room, sampler, draw, min(tasks, AT_ONCE))
    return Exam(sampler, draw, test.adapt_steps, marks)


def _refuse_shared(val: Exam, test: Exam, job: Job) -> None:
    """What chooses the checkpoint must not be what it is judged by."""
    if shared := len(set(val.tasks) & set(test.tasks)):
        raise UserError(
            f"val.seed={job.val.seed} and test.seed={job.test.seed}: {shared} of the {len(val.tasks)} validation tasks "
            f"are test tasks too. Let data={job.choices['data']} deal other tasks to val than to test."
        )


def _net(job: Job, data: Data, sampler: Sampler) -> Net:
    """The network. Memory holds it as a module that trains and one that is tested, as θ, a slope and two moments."""
    make_trunk = partial(construct, job.sections["backbone"], "backbone", shape=data.shape)
    heads, norm_stats, half = sampler.heads, job.root.norm_stats, job.root.precision == "bf16"
    with Room(f"backbone={job.choices['backbone']}", "Make it narrower", copies=6):
        net = Net.build(make_trunk, heads, norm_stats, half)
    if is_own(net.module.trunk):
        check_trunk(net.module.trunk, data.shape)
    if "sharing" not in job.sections:
        return net
    given = {"make_trunk": make_trunk, "heads": len(heads), "shape": data.shape}
    make_trunks = partial(construct, job.sections["sharing"], "sharing", **given)
    with Room(f"sharing={job.choices['sharing']}", "Make the backbone narrower", copies=6):
        net = Net.build(make_trunks, heads, norm_stats, half, by_head=True)
    if is_own(net.module.trunk):
        check_trunk(net.module.trunk, data.shape, len(heads))
    return net


def _check_algorithm(trained: Algorithm, tested: Algorithm, sampler: Sampler, exam: Exam, device: torch.device) -> None:
    """One of the user's own is tried on one task, before it is trusted with hours."""
    if not is_own(trained):
        return
    generator = torch.Generator().manual_seed(0)
    fresh = trained.init(generator)
    check_params(fresh, type(trained).__name__)
    params = {name: p.to(device) for name, p in fresh.items()}
    episode = exam.sampler.gather(exam.first().draw)
    sample = sampler.gather(sampler.draw(2, generator))
    check_algorithm(trained, tested, params, episode, sample)


def _check_statistics(job: Job, net: Net) -> None:
    """Refuses to normalise by the statistics of support rows where there are none."""
    if job.root.norm_stats == "support" and net.batch_norm and job.test.shots == 0:
        raise UserError(
            "norm_stats=support: the test's tasks have no support rows whose statistics batch norm could take "
            f"({job.owner('test')}.shots=0). Take norm_stats=batch, or give shots."
        )


def _check_phases(job: Job, algo: Callable[[int], Algorithm]) -> None:
    """Refuses a phase that would go on with other weights, or other paces of them, than those there are."""

    def weights(step: int) -> tuple[list[tuple[str, torch.Size]], dict[str, float]]:
        fresh = algo(step).init(torch.Generator().manual_seed(0))
        return sorted((name, p.shape) for name, p in fresh.items()), paces(algo(step), fresh)

    for step, keys in job.phases.items():
        if weights(step) != weights(0):
            words = ", ".join(f"{key}: {shown(value)}" for key, value in keys.items())
            raise UserError(
                f"algo.phases={{{step}: {{{words}}}}} asks for other weights, or rates of them, than training begins "
                "with. Set it in algo."
            )


def by_phase(
    job: Job, net: Net, source: Pretrained | None, balance: Balance | None = None
) -> Callable[[int], Algorithm]:
    """The algorithm in force at a step: from each step that `algo.phases` names on, with other keys.

    A `balance` is taken in place of the job's own, where it has one.
    """
    section, given = job.sections["algo"], {"net": net, **_balance(job)}
    if takes(section, "algo", "source"):
        given["source"] = source
    if "balance" in given and balance is not None:
        given["balance"] = balance
    starts, algos = [0], [fulfilled(construct(section, "algo", **given), Algorithm, "algo")]
    for step, changes in job.phases.items():
        section = {**section, **changes}
        starts.append(step)
        algos.append(construct(section, f"algo.phases.{step}", **given))
    return lambda step: algos[bisect_right(starts, step) - 1]


def _balance(job: Job) -> dict[str, Any]:
    """The balance, where there is one: then the algorithm takes it."""
    section = job.sections.get("balance")
    return {"balance": fulfilled(construct(section, "balance"), Balance, "balance")} if section else {}


def _trained(
    job: Job, algo: Callable[[int], Algorithm], net: Net, device: torch.device
) -> Callable[[int], MetaGradient]:
    """Each phase's algorithm as it is run, made once."""
    root, made = job.root, dict[int, MetaGradient]()

    def at(step: int) -> MetaGradient:
        found = algo(step)
        if id(found) not in made:
            whole = Penalty(found, net) if net.penalised else found
            made[id(found)] = traced(whole, root.compile, root.parallel, device, job.team.size)
        return made[id(found)]

    return at
