"""What a learner and its tasks may not do is found: not learn at all, or know what nobody can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.check.learning import by_heart, one_task, shuffled
from metarun.engine.mapping import Parallel
from metarun.evaluate import Exam
from metarun.loop import Loop, Plan
from metarun.maths.inner import query_grad
from metarun.maths.net import Net
from metarun.state import State
from metarun.types import Batch, Draw, Episode, Head, Heads, Metrics, Outputs, ParallelMap, Params, learned

WAYS, SHOTS, QUERIES, SIDE = 4, 2, 3, 6


@dataclass(frozen=True)
class Tasks:
    """Classes are points with some noise around; what may leak does so where it is told."""

    overlap: bool = False  # queries are rows of the support set
    padded: bool = False  # some rows of no class

    fingerprint: str = "points"
    from_disk: bool = False

    @property
    def heads(self) -> Heads:
        return {"class": Head("class", WAYS, gaps=self.padded)}

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        return {"task": torch.randint(2**30, (count,), generator=generator)}

    def gather(self, draw: Draw) -> Episode:
        each = [self._task(int(seed)) for seed in draw["task"]]
        rows = torch.arange(WAYS).repeat(SHOTS + QUERIES).expand(len(each), -1).clone()
        if self.padded:
            rows[:, WAYS - 1 :: 2 * WAYS] = -100
        x, cut = torch.stack(each), WAYS * SHOTS
        query = x[:, :cut].repeat(1, 2, 1)[:, : WAYS * QUERIES] if self.overlap else x[:, cut:]
        return Episode(Batch(x[:, :cut], {"class": rows[:, :cut]}), Batch(query, {"class": rows[:, cut:]}))

    def _task(self, seed: int) -> Tensor:
        dice = torch.Generator().manual_seed(seed)
        means = torch.randn(WAYS, SIDE, generator=dice)
        return means.repeat(SHOTS + QUERIES, 1) + 0.3 * torch.randn(WAYS * (SHOTS + QUERIES), SIDE, generator=dice)


@dataclass(frozen=True)
class Nearest:
    """A query is of the class of the nearest support row; or it is told by its place among the queries."""

    net: Any = None
    by_place: bool = False

    def init(self, generator: torch.Generator) -> Params:
        return {"scale": torch.ones(())}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        known = torch.nn.functional.one_hot(support.y["class"].clamp(min=0), WAYS) * (support.y["class"] >= 0)[:, None]
        yield {**params, "x": support.x, "known": known.float()}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        if self.by_place:
            return {"class": torch.eye(WAYS).repeat(len(x) // WAYS, 1) * fast["scale"]}
        near = (-20 * (x[:, None] - fast["x"]).square().sum(-1)).softmax(-1)
        return {"class": (near @ fast["known"] + 1e-9).log() * fast["scale"]}

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, 0)


def exam(tasks: Tasks, count: int = 96) -> Exam:
    return Exam(tasks, tasks.draw(count, torch.Generator().manual_seed(0)), 0, [0])


PARAMS = {"scale": torch.ones(())}


@pytest.mark.parametrize("padded", [False, True])
def test_an_honest_learner_is_at_chance_on_shuffled_labels(padded: bool) -> None:
    outcome = shuffled(Nearest(), PARAMS, exam(Tasks(padded=padded)))
    assert outcome.holds, outcome.found


def test_queries_that_are_in_the_support_set_are_found() -> None:
    outcome = shuffled(Nearest(), PARAMS, exam(Tasks(overlap=True)))
    assert outcome.holds is False and outcome.found.startswith("accuracy 9")


def test_a_learner_that_goes_by_the_place_of_a_row_is_found() -> None:
    outcome = shuffled(Nearest(by_place=True), PARAMS, exam(Tasks()))
    assert outcome.holds is False and outcome.found.startswith("accuracy 100.0%")


def test_the_interval_is_that_of_a_proportion() -> None:
    """Four standard deviations of at most √(1/4) of 1,152 rows dealt out: ± 5.9%."""
    assert "25.0% ± 5.9% on 1,152 queries" in shuffled(Nearest(), PARAMS, exam(Tasks())).found


def test_a_campaign_of_honest_draws_raises_no_alarm() -> None:
    for seed in range(30):
        tasks = Tasks()
        draw = tasks.draw(16, torch.Generator().manual_seed(seed))
        outcome = shuffled(Nearest(), PARAMS, Exam(tasks, draw, 0, [0]))
        assert outcome.holds, (seed, outcome.found)


@dataclass
class Silent:
    said: list[str] = field(default_factory=list)

    def step(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Line:
    """Logistic or linear regression on the rows of a task; its slope is multiplied by `share`."""

    net: Net
    share: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        return self.net.init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        yield params

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        slope, metrics = query_grad(self, params, episode, parallel, 0)
        return {name: self.share * g for name, g in slope.items()}, metrics


def learner(net: Net, share: float) -> tuple[Loop, State]:
    algo = Line(net, share)
    params = {name: p.float() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}
    plan = Plan(0, 10, 1, 0.3, float("inf"), None, None, 50, 10, None)
    loop: Any = Loop(
        algo=lambda step: algo,
        sampler=Tasks(),
        validate=lambda state: {},
        score=lambda scores: 0.0,
        factor=lambda step, steps: 1.0,
        choose=lambda state, sample: Parallel("vmap", 1),
        stop=lambda: None,
        plan=plan,
        tracker=Silent(),
        folder=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )
    return loop, State(params, torch.optim.Adam([*learned(params).values()], lr=0.3))


@pytest.mark.parametrize(("share", "holds"), [(1.0, True), (0.0, False), (-1.0, False)])
def test_one_task_is_learned_by_heart_or_not(share: float, holds: bool, linear_net: Net, points: Episode) -> None:
    """A line through five points whose values lie on one."""
    x = points.support.x[:1].float()
    rows = Batch(x, {"y": x.sum(-1, keepdim=True)})
    linear_net.module.float()
    outcome = one_task(*learner(linear_net, share), Episode(rows, rows), small=True)
    assert outcome is not None and outcome.holds is holds, outcome


def test_a_task_to_learn_by_heart_has_two_rows_of_each_class_on_both_sides() -> None:
    tasks = Tasks()
    sample = tasks.gather(tasks.draw(1, torch.Generator().manual_seed(0)))
    heads = {"class": Head("class", 6)}
    one = by_heart(sample, heads)
    assert one.support is one.query and one.support.x.shape == (1, 12, SIDE)
    assert by_heart(sample.support, heads) is sample.support
