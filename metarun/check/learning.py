"""Whether the algorithm learns what it can, one task by heart, and cannot learn what nobody can, shuffled labels."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from metarun.check.outcome import Outcome
from metarun.engine.mapping import Parallel
from metarun.evaluate import Exam, evaluate
from metarun.loop import Loop, Window
from metarun.state import State
from metarun.types import Algorithm, Batch, Draw, Episode, Heads, Params, Sampler

ONE, SHUFFLED = "one task", "shuffled labels"
STEPS, SECONDS = 300, 20.0  # at most, to learn one task
FEWEST = 50  # steps that there has to be time for
SURE = 3  # steps in a row: of a few queries all are right by luck, now and then
ERROR = 0.1  # of a value head, as a share of what it was before
LEAST = 10  # rows of a task to be learned by heart
ROWS = 64  # at most, where rows are drawn and no tasks
TASKS = 16  # judged at a time
WIDTH = 4.0  # standard deviations: one of some ten thousand honest checks lies outside


def small(sampler: Sampler, tasks: int, generator: torch.Generator) -> Any:
    """So many tasks that are drawn, or some rows."""
    return sampler.gather({name: lots[: max(tasks, ROWS)] for name, lots in sampler.draw(tasks, generator).items()})


def by_heart(sample: Any, heads: Heads) -> Any:
    """A task of some two rows a class to learn from, and the same to be judged by; a batch as it is."""
    if not isinstance(sample, Episode):
        return sample
    support, query = sample
    most = max(LEAST, 2 * sum(head.size for head in heads.values()))
    y = {head: torch.cat([support.y[head], query.y[head]], 1)[:, :most] for head in support.y}
    rows = Batch(torch.cat([support.x, query.x], 1)[:, :most], y)
    return Episode(rows, rows)


def one_task(loop: Loop, state: State, sample: Any, small: bool = False, seconds: float = SECONDS) -> Outcome | None:
    """Trains on one and the same sample until nothing is wrong. None: there would be no time for enough steps.

    Of a `small` copy what there is time for has to do.
    """
    loop = replace(loop, plan=replace(loop.plan, steps=max(loop.plan.steps, STEPS)))
    state.parallel = Parallel("vmap", 1)
    samples, window = repeat((sample, 1)), Window()
    in_a_row = 0
    began, first, found = time.perf_counter(), dict[str, float](), dict[str, float]()
    while state.step < STEPS and time.perf_counter() - began < seconds:
        since = time.perf_counter()
        loop.step(state, samples, window)
        found = {name: float(m) for name, m in window.metrics.pop().items()}
        first = first or {name: m for name, m in found.items() if not math.isnan(m)}
        found = {name: m for name, m in found.items() if name in first}  # no row has a target of the other kind
        in_a_row = in_a_row + 1 if _known(first, found) else 0
        if in_a_row == SURE:
            break
        if state.step == 2 and not small and (time.perf_counter() - since) * FEWEST > seconds:
            return None
    learned_it = in_a_row == SURE
    took = f"after {state.step} steps on it ({time.perf_counter() - began:.1f} s)"
    words = [f"accuracy {found['accuracy']:.1%}"] if "accuracy" in found else []
    words += [f"squared error {found['mse']:.3g}, at first {first['mse']:.3g}"] if "mse" in found else []
    copy = ", by a small copy of the network" if small else ""
    late = "" if learned_it or state.step == STEPS else "; there was no time for more"
    return Outcome(ONE, None if late else learned_it, f"{' and '.join(words)} {took}{copy}{late}")


def _known(first: dict[str, float], now: dict[str, float]) -> bool:
    """All classes right, and of an error little left."""
    right = now.get("accuracy", 1.0) == 1.0
    return right and ("mse" not in now or now["mse"] <= ERROR * first["mse"])


def shuffled(algo: Algorithm, params: Params, exam: Exam, seconds: float = SECONDS) -> Outcome:
    """Judges it on tasks whose images were dealt to their rows at random: more right than by chance is a leak."""
    heads, total = exam.sampler.heads, len(next(iter(exam.draw.values())))
    first = exam.sampler.gather(exam.first().draw)
    (name, head), *others = heads.items()
    if others or head.kind != "class" or not len(first.support.x[0]):
        return Outcome(SHUFFLED, None, "there is no one class to be learned from a support set")
    sampler, began = Shuffled(exam.sampler, name), time.perf_counter()
    right, tasks = 0.0, 0
    while tasks < total and time.perf_counter() - began < seconds:
        draw = {n: lots[tasks : tasks + TASKS] for n, lots in exam.draw.items()}
        piece = Exam(sampler, draw, exam.steps, [exam.steps])
        verdict = evaluate(algo, params, piece, Parallel("vmap", TASKS), say=lambda text: None)
        right += verdict.scores["accuracy"]["mean"] * verdict.tasks
        tasks += verdict.tasks
    found, chance = right / tasks, sum(sampler.chances) / len(sampler.chances)
    width = WIDTH * math.sqrt(chance / max(sampler.rows, 1))  # rows of a task are dealt, so this is the most it varies
    told = f"accuracy {found:.1%}, by chance {chance:.1%} ± {width:.1%} on {sampler.rows:,} queries"
    return Outcome(SHUFFLED, abs(found - chance) <= width, told)


@dataclass
class Shuffled:
    """The tasks of a sampler with their images dealt anew to their rows, while the targets stay where they are.

    So neither what an image shows nor where it stands tells its class. Only a query that is also in the support set
    goes, where it can, to a row of the class that it has there: whoever knows it again is right.
    """

    inner: Sampler
    head: str
    chances: list[float] = field(default_factory=list)  # of each task: to be right by chance
    rows: int = 0  # of all queries
    dice: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def heads(self) -> Heads:
        return self.inner.heads

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def from_disk(self) -> bool:
        return self.inner.from_disk

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        return self.inner.draw(count, generator)

    def gather(self, draw: Draw) -> Episode:
        support, query = self.inner.gather(draw)
        dealt = [self._deal(*(t.cpu() for t in (*task,))) for task in self._tasks(support, query)]
        of_support, of_query = (torch.stack(rows).to(support.x.device) for rows in zip(*dealt, strict=True))
        return Episode(_taken(support, of_support), _taken(query, of_query))

    def _tasks(self, support: Batch, query: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(support.x, support.y[self.head], query.x, query.y[self.head], strict=True)

    def _deal(self, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> tuple[Tensor, Tensor]:
        """For each row of support and query the row whose image it gets; rows of no class keep theirs."""
        self.chances.append(1 / max(len(y[y >= 0].unique()), 1))
        self.rows += int((query_y >= 0).sum())
        support = self._mixed(y)
        classes = {_content(x[row]): int(y[place]) for place, row in enumerate(support.tolist()) if y[place] >= 0}
        query = self._mixed(query_y)
        free = [place for place in query.tolist() if query_y[place] >= 0]
        dealt, images = torch.arange(len(query_y)), sorted(free, key=lambda row: _content(query_x[row]) not in classes)
        for row in images:
            wanted = classes.get(_content(query_x[row]))
            place = next((p for p in free if wanted is not None and int(query_y[p]) == wanted), free[0])
            free.remove(place)
            dealt[place] = row
        return support, dealt

    def _mixed(self, y: Tensor) -> Tensor:
        """The rows of a class in random order."""
        rows, known = torch.arange(len(y)), (y >= 0).nonzero().flatten()
        rows[known] = known[torch.randperm(len(known), generator=self.dice)]
        return rows


def _taken(batch: Batch, rows: Tensor) -> Batch:
    """A batch with other inputs in its rows [T, B]."""
    return Batch(torch.stack([x[chosen] for x, chosen in zip(batch.x, rows, strict=True)]), batch.y)


def _content(image: Tensor) -> bytes:
    return image.numpy().tobytes()
