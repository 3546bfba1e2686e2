"""`metarun check [key=value ...]`: what can go wrong with a long run is looked at before it, in a minute or less."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from metarun.cli.compose import each_job
from metarun.cli.overrides import parted
from metarun.errors import UserError
from metarun.settings import Job

if TYPE_CHECKING:  # torch takes a second to import; --cfg job must not wait for it
    from metarun.build import Parts
    from metarun.check.needs import Needs
    from metarun.check.outcome import Outcome
    from metarun.loop import Loop

HERE = ("hydra.run.dir=.", "hydra.mode=RUN")  # no folder is made for what is no run
MARKS = {True: ("✓", "ok"), False: ("✗", "NO"), None: ("–", "--")}  # for a terminal of UTF-8, and for any
BROKEN = 1  # exit code
LARGE = 0.2  # of the whole time: worth a word on what lowers it


class Quiet:
    """A tracker of what is no run: it tells what is said, and nothing of the steps."""

    def step(self, step: int) -> None:
        pass

    def log(self, step: int, values: dict[str, float]) -> None:
        pass

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, flush=True)


def main(arguments: list[str]) -> int:
    """Prints what was found and what the run needs; returns 1 where a check fails."""
    if {"--multirun"} & set(parted(arguments)[0]):
        raise UserError("check looks at one run, and -m asks for several. Leave it out.")
    return each_job(arguments, _check, HERE)


def _check(job: Job) -> int:
    from metarun.build import build
    from metarun.engine.device import keep_freed_memory
    from metarun.run import fresh_state, loop_of, rehearse

    if job.resumes:
        raise UserError("check is for a run that has not begun. Leave out resume=.")
    if not job.train.steps:
        raise UserError("check is for a run that trains, and train.steps=0 asks for no step. Raise it.")
    if job.team.size > 1:
        raise UserError("check works in one process. Start it without torchrun.")
    keep_freed_memory()
    parts = build(job)
    loop = loop_of(job, parts, Quiet(), job.folder, lambda state: {})
    rehearse(parts, fresh_state(job, parts))
    needs = _needed(job, parts, loop)  # first, while its memory is all that was ever used
    broken = False
    for outcome in _outcomes(job, parts, loop):
        broken = broken or outcome.holds is False
        _line(_mark(outcome.holds), outcome.what, outcome.found)
    for what, words in _told(job, parts, needs).items():
        _line(" ", what, words)
    return BROKEN if broken else 0


def _needed(job: Job, parts: Parts, loop: Loop) -> Needs:
    from metarun.check.needs import needed
    from metarun.run import for_evaluation, fresh_state

    state = fresh_state(job, parts)
    mapping = partial(for_evaluation, device=parts.device, team=job.team)
    return needed(loop, state, parts.tested(0), parts.val, parts.test, mapping)


def _outcomes(job: Job, parts: Parts, loop: Loop) -> Iterator[Outcome]:
    import torch

    from metarun.build import by_phase
    from metarun.check import gradient, learning, splits
    from metarun.check.smooth import Mean, Smooth
    from metarun.maths.net import Net
    from metarun.run import fresh_state
    from metarun.state import State, groups

    seed, device = job.root.seed, parts.device
    smooth = partial(Smooth, parts.data.shape, parts.algo(0).net.batch_norm)
    net = Net.build(smooth, parts.sampler.heads, job.root.norm_stats)
    copy = by_phase(job, net, parts.source and parts.source.played_by(net), Mean())
    pair = learning.small(parts.sampler, 2, torch.Generator(device).manual_seed(seed))
    for step in (0, *job.phases):
        params = copy(step).init(torch.Generator().manual_seed(seed))
        yield gradient.meta_gradient(copy(step), params, pair, step)

    drawn = learning.small(parts.sampler, 1, torch.Generator(device).manual_seed(seed))
    sample = learning.by_heart(drawn, parts.sampler.heads)
    state, tested = fresh_state(job, parts), parts.tested(0)
    loop = replace(loop, algo=parts.algo)  # as it is: to compile it for this sample alone would take too long
    found = learning.one_task(loop, state, sample)
    if found is None:
        net = Net.build(partial(smooth, channels=32, side=16), parts.sampler.heads, job.root.norm_stats).to(device)
        source = parts.source and parts.source.played_by(net)
        trained = by_phase(job, net, source)
        tested = by_phase(job, net.testing(parts.test.sampler.heads), source)(0)
        fresh = {name: p.to(device) for name, p in trained(0).init(torch.Generator().manual_seed(seed)).items()}
        state = State(fresh, parts.optimizer(groups(trained(0), fresh)))
        found = learning.one_task(replace(loop, algo=trained), state, sample, small=True)
    assert found is not None
    yield found
    yield learning.shuffled(tested, state.params, parts.val)
    yield splits.disjoint(parts.data, parts.test_data)


def _told(job: Job, parts: Parts, needs: Needs) -> dict[str, str]:
    """What the run needs, and the keys that would lower it."""
    from metarun.engine.progress import clock

    steps = f"{needs.steps:,} steps of {1000 * needs.step:,.0f} ms"
    time = (
        f"about {clock(needs.seconds)}: {clock(needs.training)} for {steps}, {clock(needs.validation)} for "
        f"{needs.validations} validations, {clock(needs.test)} for the meta-test"
    )
    memory = f"{needs.memory:,.0f} MB on {parts.device} at its peak, tasks mapped by {needs.parallel}"
    faster, smaller = _keys(job, needs)
    told = {"time": time, "to lower it": ", ".join(faster), "memory": memory, "to lower that": ", ".join(smaller)}
    return {what: words for what, words in told.items() if words}


def _keys(job: Job, needs: Needs) -> tuple[list[str], list[str]]:
    """The keys that lower time and memory, with their values: those that can be lowered and weigh something."""
    train, val, test, algo = job.train, job.val, job.test, job.config["algo"]
    queries, inner = (f"{job.owner('train')}.queries", train.queries), ("algo.inner_steps", algo.get("inner_steps", 1))
    sizes = [("train.tasks", train.tasks), *([queries] if "episodes" in job.trains_on else []), inner]
    parts = (
        (needs.training, [("train.steps", train.steps), *sizes]),
        (needs.validation, [("val.tasks", val.tasks), ("test.adapt_steps", test.adapt_steps)]),
        (needs.test, [("test.tasks", test.tasks), ("test.adapt_steps", test.adapt_steps)]),
    )
    faster = dict(key for seconds, keys in parts if seconds > LARGE * needs.seconds for key in keys)
    smaller = {"chunk": needs.parallel.chunk, **dict(sizes[1:])}
    more = [f"val.every={val.every} (raise it)"] if needs.validation > LARGE * needs.seconds else []
    remat = ["algo.remat=true"] if algo.get("remat") is False else []
    return [*_values(faster), *more], [*_values(smaller), *remat, f"backbone={job.choices['backbone']}"]


def _values(keys: dict[str, int]) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items() if value > 1]


def _line(mark: str, what: str, words: str) -> None:
    print(f"{mark} {what:<15}  {words}" if _utf8() else f"{mark} {what:<15}  {words}".replace("±", "+-"), flush=True)


def _mark(holds: bool | None) -> str:
    return MARKS[holds][0 if _utf8() else 1]


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
