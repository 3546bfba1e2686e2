"""The one protocol: fixed episodes in, scores by adaptation step with confidence intervals out."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.engine.choice import within_memory
from metarun.engine.mapping import Parallel
from metarun.maths import pooled
from metarun.maths.losses import by_head, flat
from metarun.metrics import metric
from metarun.types import Algorithm, Draw, Episode, Heads, Metrics, Outputs, Params, Sampler, Score, Targets, told

log = logging.getLogger("metarun")

Summary = dict[str, float | int]  # mean, ci95, tasks
AT_ONCE = 120  # tasks whose episodes are on the device at a time
DIVERGED = "diverged"


def dice(split: str, seed: int) -> torch.Generator:
    """What the fixed tasks of a split are drawn with: splits share no draw, also where their seeds are the same.

    It is on the CPU, where a seed means the same on every machine.
    """
    mixed = hashlib.blake2b(f"{split}/{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)


def milestones(steps: int) -> list[int]:
    """The adaptation steps worth reporting: all up to 10, then 20, 50, 100, ... and the last."""
    rungs = [r * 10**e for e in range(1, 6) for r in (1, 2, 5)]
    return sorted({*range(min(steps, 10) + 1), *(r for r in rungs if r < steps), steps})


@dataclass(frozen=True)
class Exam:
    """Fixed tasks to be judged on, and after how many steps of adaptation."""

    sampler: Sampler
    draw: Draw
    steps: int
    marks: Collection[int]  # steps after which the tasks are judged

    def first(self) -> Exam:
        """The same with the first of its tasks alone."""
        return replace(self, draw={name: lots[:1] for name, lots in self.draw.items()})

    @cached_property
    def tasks(self) -> list[str]:
        """A name of each task: the same one means the same images in the same places, dealt alike to support and query.

        How tasks are dealt is read off the first one, so that no sampler need tell it.
        """
        dealt = tree_map(lambda t: list(t.shape), self.sampler.gather(self.first().draw))
        source = hashlib.sha256(f"{self.sampler.fingerprint} {dealt}".encode())
        draw = {name: lots.cpu().numpy() for name, lots in sorted(self.draw.items())}
        names = []
        for t in range(len(next(iter(draw.values())))):
            digest = source.copy()
            for name, lots in draw.items():
                digest.update(f"{name} {lots.dtype} {lots.shape[1:]}".encode() + lots[t].tobytes())
            names.append(digest.hexdigest())
        return names

    @property
    def fingerprint(self) -> str:
        """Names the episodes."""
        return f"sha256:{hashlib.sha256(' '.join(self.tasks).encode()).hexdigest()[:32]}"


class Verdict(NamedTuple):
    """Scores by metric (of several heads also by `head/metric`), at the end and after each marked step: means over
    tasks, and at the end, where that was asked for, metrics of all queries together."""

    scores: dict[str, Summary]
    by_step: dict[int, dict[str, Summary]]
    tasks: int
    diverged: dict[int, int]  # by step: of the tasks, those whose outputs are no numbers


def evaluate(
    algo: Algorithm,
    params: Params,
    exam: Exam,
    parallel: Parallel,
    between: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = log.warning,
    together: bool = False,
) -> Verdict:
    """Adapts to every task of the exam and judges it on its queries; where adaptation ends early, its last φ counts.

    `between` is told, before each piece of the work and at its end, how many of the tasks are done: it may raise.
    `say` takes what went amiss. `together` asks for metrics of all queries together, too, after the last step.
    """
    judged: list[int] = []  # the same for all tasks

    def scores(params: Params, task: Episode) -> tuple[list[Metrics], Metrics]:
        trajectory = marked(algo.adapt(params, task.support, exam.steps), exam.marks)
        judged[:], outputs, own = zip(*predicted(algo, trajectory, task.query.x), strict=True)
        heads, y = exam.sampler.heads, task.query.y
        rows = [_judged(heads, out, y, of) for out, of in zip(outputs, own, strict=True)]
        return rows, pooled.tallies(heads, outputs[-1], y, rows[-1][DIVERGED] == 0) if together else {}

    team, total = parallel.team, len(next(iter(exam.draw.values())))
    parts = []
    between(0, total)
    with torch.no_grad():
        for chosen in team.deal(total).split(AT_ONCE):
            piece = exam.sampler.gather({name: t[chosen] for name, t in exam.draw.items()})
            work = partial(Parallel.stack, fn=scores, params=params, tasks=piece)
            done, parallel = within_memory(work, parallel, say)
            parts.append(done)
            between(min(AT_ONCE * len(parts) * team.size, total), total)
        by_mark, tallies = tree_map(lambda *leaves: team.gather(torch.cat(leaves).cpu(), total), *parts)
    lost = [int(row.pop(DIVERGED).sum()) for row in by_mark]
    if 0 < lost[-1] < total:  # of all of them the caller has more to say
        say(f"adaptation diverged in {lost[-1]} of {total} tasks")
    rows = [{name: summary(values) for name, values in row.items()} for row in by_mark]
    rows[-1] |= {name: pooled.together(name, tally) for name, tally in tallies.items()}
    by_step, diverged = dict(zip(judged, rows, strict=True)), dict(zip(judged, lost, strict=True))
    return team.broadcast(lambda: Verdict(rows[-1], by_step, total, diverged))


def transductive(algo: Algorithm, params: Params, exam: Exam) -> bool:
    """Whether what is predicted of a query depends on the queries beside it: tried on the first task."""
    support, query = tree_map(lambda t: t[0], exam.sampler.gather(exam.first().draw))
    with torch.no_grad():
        *_, fast = algo.adapt(params, support, 1)
        among_others, among_copies = (algo.predict(fast, x) for x in (query.x, query.x[:1].expand_as(query.x)))
    pairs = [(out[0], among_copies[head][0]) for head, out in among_others.items()]
    return not all(torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True) for one, other in pairs)


def _judged(heads: Heads, outputs: Outputs, y: Targets, own: Metrics) -> Metrics:
    """The metrics of one task, and whether its adaptation diverged, so that outputs or losses are no numbers.

    Then it is wrong for every query of every head, and has no loss. What no query has a target for is no number either.
    Nothing here waits for the device.
    """
    score = by_head(heads, outputs, y)
    held = torch.stack([part.isfinite().all() for part in (*outputs.values(), *score.losses.values())]).all()
    found = {}
    for name, value in flat(score).items():
        judged = torch.where(held, value, math.nan if metric(name).is_loss else 0.0)
        found[name] = torch.where(_rows_of(name, score) > 0, judged, math.nan)
    return {**found, **own, DIVERGED: (~held).to(torch.float32)}


def _rows_of(name: str, score: Score) -> Tensor:
    """How many rows stand behind a metric: of one head, or of all that have it."""
    head, _, kind = name.rpartition("/")
    heads = [head] if head else [h for h, own in score.metrics.items() if kind == "loss" or kind in own]
    return torch.stack([score.rows[h] for h in heads]).sum()


def marked(trajectory: Iterable[Params], marks: Collection[int]) -> Iterator[tuple[int, Params]]:
    """Those φ to be judged, with their steps: the marked ones, and the last where it comes before its mark."""
    pending: tuple[int, Params] | None = None
    for step, fast in enumerate(trajectory):
        pending = (step, fast)
        if step in marks:
            yield pending
            pending = None
    if pending is not None:
        yield pending


def predicted(
    algo: Algorithm, trajectory: Iterable[tuple[int, Params]], x: Tensor
) -> Iterator[tuple[int, Outputs, Metrics]]:
    """The step of each φ, its outputs for one task's inputs, and what it tells itself. Those that share most of their
    entries (a frozen trunk, say) are mapped over the rest: what they share then sees the inputs once."""
    group: list[tuple[int, Params]] = []
    for step, fast in trajectory:
        if group and not _mostly_shared(group[0][1], fast):
            yield from _together(algo, group, x)
            group = []
        group.append((step, fast))
    yield from _together(algo, group, x)


def _mostly_shared(one: Params, other: Params) -> bool:
    """Whether little has moved from one φ to the other."""
    moved = sum(p.numel() for name, p in other.items() if one[name] is not p)
    return 10 * moved < sum(p.numel() for p in other.values())


def _together(algo: Algorithm, group: list[tuple[int, Params]], x: Tensor) -> Iterator[tuple[int, Outputs, Metrics]]:
    steps, fasts = zip(*group, strict=True)
    if len(fasts) == 1:
        yield steps[0], algo.predict(fasts[0], x), told(fasts[0])
        return
    first = fasts[0]
    moving = {name for name in first if any(fast[name] is not first[name] for fast in fasts)}
    params = {name: torch.stack([f[name] for f in fasts]) if name in moving else p for name, p in first.items()}
    dims = {name: 0 if name in moving else None for name in first}
    outputs = torch.vmap(algo.predict, in_dims=(dims, None))(params, x)
    for i, (step, fast) in enumerate(group):
        yield step, {head: output[i] for head, output in outputs.items()}, told(fast)


def worth(name: str, tasks: int, scores: Mapping[str, Summary]) -> float:
    """What a validation on so many tasks is chosen by: more is better.

    A mean error is of those tasks that did not diverge. One that lost tasks is therefore worse than any that lost none,
    and the worse the more it lost. That a task has no row of a head is no such loss.
    """
    held = scores["loss"]["tasks"]
    if metric(name).is_loss and 0 < held < tasks:
        return -sys.float_info.max * (1 - held / tasks)
    return metric(name).sign * scores[name]["mean"]


def summary(values: Tensor) -> Summary:
    """Mean over tasks with its 95% confidence interval, 1.96 · std / √tasks; a task without a number is not among them.

    The interval is over the drawing of tasks. Episodes are drawn with replacement from a finite set of images: it does
    not cover the choice of those images, and the mean on other images may well lie outside.
    """
    values = values[values.isfinite()].double()
    if not len(values):
        return {"mean": math.nan, "ci95": math.nan, "tasks": 0}
    spread = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / len(values) ** 0.5, "tasks": len(values)}
