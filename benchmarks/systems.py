"""The ways to compute a workload that are measured: metarun's own, a hand-written loop, the field's libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import libraries, machine, plain, workloads
from benchmarks.measure import seconds
from benchmarks.session import Session, Silent, draw
from metarun.algos.maml import MAML
from metarun.algos.mtl import MultiTask
from metarun.algos.reptile import Reptile
from metarun.build import Parts, build
from metarun.engine.device import peak_memory_mb
from metarun.run import first_params
from metarun.settings import Job
from metarun.types import Params


class Unavailable(Exception):
    """A system that cannot be measured here, and why."""


@dataclass(frozen=True)
class System:
    steps: Callable[[int], None]  # so many whole meta-steps: sampling, meta-gradient, optimiser
    meta_grad: Callable[[], Any]  # the meta-gradient alone, of one fixed sample
    tasks: int  # of a meta-step
    device: torch.device
    mapping: Callable[[], str]  # how tasks are mapped, once a step was made


def metarun(own: str) -> Callable[[Sequence[str]], System]:
    """metarun itself, with one override of its own."""

    def start(overrides: Sequence[str]) -> System:
        session = Session.start([*overrides, own], Silent())
        device = session.parts.device
        return System(session.steps, session.meta_grad, session.tasks, device, lambda: str(session.state.parallel))

    return start


@dataclass(frozen=True)
class ByHand:
    """A model and the function that leaves a sample's meta-gradient in the model's `.grad`."""

    model: nn.Module
    draw: Callable[[], Any]
    accumulate: Callable[[Any], None]

    @staticmethod
    def of(job: Job, parts: Parts, maml: Callable[..., None] = plain.maml) -> ByHand:
        algo = parts.algo(0)
        trunk = plain.trunk(job.sections["backbone"], parts.data.shape).to(parts.device)
        features = trunk(torch.zeros(2, *parts.data.shape, device=parts.device)).shape[1]
        if isinstance(algo, MultiTask):
            heads = [nn.Linear(features, head.size, device=parts.device) for head in algo.net.heads.values()]
            model: nn.Module = nn.ModuleList([trunk, *heads])
            return ByHand(model, _fixed_tasks(job, parts), partial(plain.multi_task, trunk, heads))
        (head,) = parts.sampler.heads.values()
        model = nn.Sequential(trunk, nn.Linear(features, head.size, device=parts.device))
        loss = F.cross_entropy if head.kind == "class" else F.mse_loss
        assert isinstance(algo, MAML | Reptile)
        work = partial(maml if isinstance(algo, MAML) else plain.reptile, model, loss)
        return ByHand(model, draw(job, parts), lambda sample: work(sample, algo.inner_lr, algo.inner_steps))

    def load(self, params: Params) -> None:
        """θ of metarun, whose one output layer holds the rows of all heads."""
        *trunk, weight, bias = params.values()
        own = list(self.model.parameters())
        rows = [len(p) for p in own[len(trunk) :: 2]]
        heads = [p for pair in zip(weight.split(rows), bias.split(rows), strict=True) for p in pair]
        with torch.no_grad():
            for p, value in zip(own, [*trunk, *heads], strict=True):
                p.copy_(value)

    def grads(self, like: Params) -> Params:
        """The accumulated meta-gradient under metarun's names."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.model.parameters()]
        split = len(like) - 2
        joined = [*own[:split], torch.cat(own[split::2]), torch.cat(own[split + 1 :: 2])]
        return dict(zip(like, joined, strict=True))


def _fixed_tasks(job: Job, parts: Parts) -> Callable[[], Any]:
    """Images, labels within their own task, and which task: what a list of heads needs."""
    generator = torch.Generator(parts.device).manual_seed(0)

    def drawn() -> Any:
        found = parts.sampler.draw(job.train.tasks, generator)
        return parts.sampler.gather(found).x, found["way"], found["task"].tolist()

    return drawn


def looped(maml: Callable[..., None] = plain.maml, needs: str | None = None) -> Callable[[Sequence[str]], System]:
    """A loop over tasks in Python, with the outer optimiser and the sampler that metarun has."""

    def start(overrides: Sequence[str]) -> System:
        job = workloads.job(*overrides)
        if needs is not None:
            _require(needs, job)
        parts = build(job)
        made = ByHand.of(job, parts, maml)
        made.load(first_params(job, parts))
        optimizer: Any = parts.optimizer(list(made.model.parameters()))
        fixed = made.draw()

        def steps(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad()
                made.accumulate(made.draw())
                optimizer.step()

        def meta_grad() -> None:
            made.model.zero_grad()
            made.accumulate(fixed)

        return System(steps, meta_grad, len(tree_leaves(fixed)[0]), parts.device, lambda: "loop")

    return start


def _require(library: str, job: Job) -> None:
    if job.choices["algo"] != "maml":
        raise Unavailable(f"{library} is measured on MAML only")
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise Unavailable(f"it cannot be imported ({error})") from error


SYSTEMS: dict[str, Callable[[Sequence[str]], System]] = {
    "plain": looped(),
    "auto": metarun("parallel=measure"),
    "eager": metarun("compile=false"),
    "loop": metarun("parallel=loop"),
    "vmap": metarun("parallel=vmap"),
    "compiled": metarun("compile=true"),
    "higher": looped(libraries.higher, needs="higher"),
    "learn2learn": looped(libraries.learn2learn, needs="learn2learn"),
}


def flops(overrides: Sequence[str]) -> int:
    """Floating-point operations of convolutions and matrix products in one meta-gradient, counted in the plain loop."""
    system = SYSTEMS["plain"](overrides)
    with FlopCounterMode(display=False) as counter:
        system.meta_grad()
    return counter.get_total_flops()


class Fresh(NamedTuple):
    first_s: float  # the first meta-step, warming up, choosing and compiling included
    peak_mb: float


def fresh(name: str, overrides: Sequence[str], allocator: str) -> Fresh:
    """What a system's first steps cost; to be called in a process of its own."""
    machine.allocate(allocator)
    try:
        system = SYSTEMS[name](overrides)
        first = seconds(partial(system.steps, 1), system.device)
        system.steps(2)
    except torch.OutOfMemoryError as error:
        raise Unavailable("out of memory") from error
    return Fresh(first, peak_memory_mb(system.device))
