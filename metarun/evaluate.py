"""The one protocol: fixed episodes in, scores by adaptation step with confidence intervals out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.engine.choice import within_memory
from metarun.engine.mapping import Parallel
from metarun.engine.ranks import ALONE, Team
from metarun.maths.losses import judge
from metarun.types import Algorithm, Draw, Episode, Metrics, Params, Sampler

log = logging.getLogger("metarun")

PIECE = 120  # tasks whose episodes are on the device at a time


def milestones(steps: int) -> list[int]:
    """The adaptation steps worth reporting: all up to 10, then 20, 50, 100, ... and the last."""
    rungs = [r * 10**e for e in range(1, 6) for r in (1, 2, 5)]
    return sorted({*range(min(steps, 10) + 1), *(r for r in rungs if r < steps), steps})


def episodes_hash(sampler: Sampler, draw: Draw) -> str:
    """Names the test episodes: the same hash means the same images in the same tasks."""
    digest = hashlib.sha256(sampler.fingerprint.encode())
    for name in sorted(draw):
        digest.update(name.encode() + draw[name].cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def evaluate(
    algo: Algorithm,
    params: Params,
    sampler: Sampler,
    draw: Draw,
    steps: int,
    parallel: Parallel,
    marks: Collection[int] | None = None,
    between: Callable[[], None] = lambda: None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Adapts to every drawn task and judges it on its queries after each of `marks` steps.

    `between` is called after each piece of the work: it may raise to stop it.
    """
    marks = milestones(steps) if marks is None else sorted(marks)

    def scores(params: Params, task: Episode) -> list[Metrics]:
        trajectory = enumerate(algo.adapt(params, task.support, steps))
        return [
            judge(sampler.heads, algo.predict(fast, task.query.x), task.query.y)[1]
            for step, fast in trajectory
            if step in marks
        ]

    total = len(next(iter(draw.values())))
    mine = team.deal(total)
    parts = []
    with torch.no_grad():
        for chosen in mine.split(PIECE):
            piece = sampler.gather({name: t[chosen] for name, t in draw.items()})
            work = partial(Parallel.stack, fn=scores, params=params, tasks=piece)
            done, parallel = within_memory(work, parallel, log.warning)
            parts.append(done)
            between()
        by_mark = tree_map(lambda *leaves: team.gather(torch.cat(leaves).cpu(), total), *parts)
    rows = [
        {"step": step, **{name: summary(values) for name, values in row.items()}}
        for step, row in zip(marks, by_mark, strict=True)
    ]
    return team.lead(lambda: {**{k: v for k, v in rows[-1].items() if k != "step"}, "by_step": rows})


def summary(values: Tensor) -> dict[str, float | int]:
    """Mean over tasks with its 95% confidence interval, 1.96 · std / √tasks."""
    values = values.double()
    spread = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / len(values) ** 0.5, "tasks": len(values)}
