"""The one training loop: sample, step, log, validate, save, resume, stop. It knows interfaces only."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metarun.engine.choice import within_memory
from metarun.engine.device import peak_memory_mb, seed_draws
from metarun.engine.mapping import Parallel
from metarun.engine.prefetch import prefetched
from metarun.engine.ranks import ALONE, Team
from metarun.errors import UserError
from metarun.state import State
from metarun.tracking import checkpoint
from metarun.types import LOTS, PACE, STEP, MetaGradient, Metrics, Params, Sampler, learned, memory


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. What was reached is saved first, unless it has to end at once."""

    def __init__(self, signal: int, at_once: bool = False) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
        self.at_once = at_once
        self.folder: Path | None = None  # to resume from


class Tracker(Protocol):
    """Who is told what happens in training."""

    def step(self, step: int) -> None:
        """Takes the number of meta-steps done, after each: it has to be quick."""
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes what was measured up to a step, by name: `train/loss`, `val/accuracy`."""
        ...

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None:
        """Takes what was measured of each pair of heads up to a step; then `log` is called for that step."""
        ...

    def say(self, text: str) -> None:
        """Takes a line for the person who watches."""
        ...


@dataclass(frozen=True)
class Plan:
    """The budget and the rhythm of a training."""

    seed: int
    steps: int
    tasks: int
    lr: float
    max_seconds: float
    clip_value: float | None
    clip_norm: float | None
    log_every: int
    val_every: int
    patience: int | None


@dataclass
class Window:
    """The metrics of the steps since the last log, still on the device."""

    metrics: list[Metrics] = field(default_factory=list)
    tasks: int = 0
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Loop:
    algo: Callable[[int], MetaGradient]  # in force at a step
    sampler: Sampler
    validate: Callable[[State], dict[str, Any]]
    score: Callable[[dict[str, Any]], float]  # of a validation: more is better
    factor: Callable[[int, int], float]  # of the learning rate, by (step, steps)
    choose: Callable[[State, Any], Parallel]  # how to map tasks, given the first sample
    stop: Callable[[], int | None]  # the signal that came, if any
    plan: Plan
    tracker: Tracker
    folder: Path  # of the checkpoints
    device: torch.device
    team: Team = ALONE
    identity: dict[str, Any] = field(default_factory=dict)  # of the run: every checkpoint tells it

    def run(self, state: State) -> None:
        """Trains until steps, time or patience are used up. Raises Stopped, with all saved, when told to stop."""
        samples = self.samples(state.step)
        window = Window()
        started = time.perf_counter() - state.seconds
        try:
            while True:
                state.seconds, signal = self.team.agreed(time.perf_counter() - started, self.stop())
                done = self._exhausted(state)
                due = state.step % self.plan.val_every == 0 and state.step > 0
                if (due or done) and state.validated != state.step:
                    self._flush(state, window)
                    self._validate(state)
                    self._save("last.pt", state)
                    window.since = time.perf_counter()
                if done or self._exhausted(state):
                    return
                if signal is not None:
                    raise Stopped(signal)
                self.step(state, samples, window)
                self.tracker.step(state.step)
                if state.step % self.plan.log_every == 0:
                    self._flush(state, window)
        except Stopped as stopped:
            if not stopped.at_once:  # else it may have come in the middle of an update
                self._flush(state, window)
                self._save("last.pt", state)
            raise
        finally:
            samples.close()

    def _exhausted(self, state: State) -> bool:
        plan = self.plan
        tired = plan.patience is not None and state.stale >= plan.patience
        return state.step >= plan.steps or state.seconds >= plan.max_seconds or tired

    def samples(self, start: int) -> Generator[tuple[Any, int], None, None]:
        """Of each step, this rank's sample and the tasks of all ranks; from a disk the next is fetched meanwhile."""
        sample, steps = partial(self._sample, torch.Generator(self.device)), range(start, self.plan.steps)
        if self.sampler.from_disk:
            return prefetched(sample, steps, self.device)
        return (sample(step) for step in steps)

    def _sample(self, generator: torch.Generator, step: int) -> tuple[Any, int]:
        generator.manual_seed(_seed(self.plan.seed, step))
        draw = self.sampler.draw(self.plan.tasks, generator)
        total = len(next(iter(draw.values())))  # plan.tasks, or all there are
        share = self.team.share(total)
        return self.sampler.gather({name: lots[share] for name, lots in draw.items()}), total

    def step(self, state: State, samples: Iterator[tuple[Any, int]], window: Window) -> None:
        """One meta-step. Its randomness is a function of seed and step alone, so resuming needs no generator state."""
        sample, total = next(samples)
        self._tell(state)
        if state.parallel is None:
            chosen = self.team.broadcast(partial(self.choose, state, sample))
            state.parallel = replace(chosen, team=self.team)
        own = _seed(self.plan.seed, state.step) + self.team.rank
        found: list[tuple[Params, Metrics]] = []

        def closure() -> Tensor:
            assert state.parallel is not None
            seed_draws(self.device, own)  # dropout draws from the device's own generator: each time the same
            work = partial(self.algo(state.step).meta_grad, state.params, sample)
            with torch.enable_grad():  # an optimiser may call this under no_grad
                (slope, metrics), state.parallel = within_memory(work, state.parallel, self.tracker.say)
            self._set_slope(state.params, slope)
            found.append((slope, metrics))
            return metrics["loss"]

        for group in state.optimizer.param_groups:
            group["lr"] = self.plan.lr * self.factor(state.step, self.plan.steps) * group.get(PACE, 1.0)
        state.optimizer.step(closure)
        values, metrics = found[0]  # at θ; an optimiser that looks elsewhere, too, does so for its own purposes
        for name, p in memory(state.params).items():
            if name in values:
                p.copy_(values[name])
        state.step += 1
        window.metrics.append(metrics)
        window.tasks += total

    def _tell(self, state: State) -> None:
        """Writes the entries of θ that tell about this step, the same on all ranks."""
        if STEP in state.params:
            state.params[STEP].fill_(state.step)
        if LOTS in state.params:
            generator = torch.Generator(self.device).manual_seed(_seed(self.plan.seed, state.step) ^ 1)
            state.params[LOTS].uniform_(generator=generator)

    def _set_slope(self, params: Params, slope: Params) -> None:
        own = learned(params)
        for name, p in own.items():
            p.grad = slope.get(name)  # without one, an optimiser leaves it alone
        if self.plan.clip_value is not None:
            torch.nn.utils.clip_grad_value_([*own.values()], self.plan.clip_value)
        if self.plan.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([*own.values()], self.plan.clip_norm)

    def _flush(self, state: State, window: Window) -> None:
        """Fetches the window's metrics in one copy, checks and logs them: their means over its steps."""
        if not window.metrics:
            return
        first = window.metrics[0]
        table = torch.stack([torch.cat([m[n].float().flatten() for n in first]) for m in window.metrics]).cpu()
        steps = dict(zip(first, table.split([m.numel() for m in first.values()], 1), strict=True))
        state.tasks_per_s = window.tasks / (time.perf_counter() - window.since)
        bad = (~steps["loss"][:, 0].isfinite()).nonzero()
        if len(bad):
            raise self._diverged("the loss", state.step - len(table) + int(bad[0]) + 1)
        values = {f"train/{n}": found.nanmean().item() for n, found in steps.items() if first[n].ndim == 0}
        values = {name: value for name, value in values.items() if not math.isnan(value)}  # no step had that
        for name in (n for n in steps if first[n].ndim == 2):
            values |= self._of_pairs(state.step, f"train/{name}", steps[name].nanmean(0).view_as(first[name]))
        self.tracker.log(
            state.step,
            {
                **values,
                "train/tasks_per_s": state.tasks_per_s,
                "train/lr": state.optimizer.param_groups[0]["lr"],
                "train/memory_mb": peak_memory_mb(self.device),
            },
        )
        window.metrics.clear()
        window.tasks = 0
        window.since = time.perf_counter()

    def _of_pairs(self, step: int, name: str, cells: Tensor) -> dict[str, float]:
        """Hands a matrix on; returns its mean over pairs of different heads. A pair that never met has no number, and
        one head alone is no pair."""
        if len(cells) < 2:
            return {}
        self.tracker.matrix(step, name, [*self.sampler.heads], cells.tolist())
        known = cells[~torch.eye(len(cells), dtype=torch.bool) & ~cells.isnan()]
        return {name: known.mean().item()} if len(known) else {}

    def _validate(self, state: State) -> None:
        val = self.validate(state)
        scores = {name: s for name, s in val.items() if name != "by_step"}
        score = self.score(scores)
        if not math.isfinite(score):
            raise self._diverged("the validation's score", state.step)
        state.validated = state.step
        if state.best is None or score > state.best["score"]:
            state.best = {"step": state.step, "score": score, "val": scores}
            state.stale = 0
            self._save("best.pt", state)
        else:
            state.stale += 1
        self.tracker.log(state.step, {f"val/{name}": s["mean"] for name, s in scores.items()})

    def _save(self, name: str, state: State) -> None:
        if not all(bool(p.isfinite().all()) for p in learned(state.params).values()):
            raise self._diverged("the loss", state.step)
        if self.team.rank == 0:
            checkpoint.save(self.folder / name, {**state.dump(), "run": self.identity})
        self.team.barrier()  # who goes on can rely on the file

    def _diverged(self, what: str, step: int) -> UserError:
        kept = [self.folder / name for name in ("last.pt", "best.pt") if (self.folder / name).exists()]
        where = f"The last good checkpoint is {kept[0]}" if kept else "No checkpoint had been saved yet"
        return UserError(f"{what} is no number at step {step}. {where}; lower optim.lr or algo.inner_lr.")


def _seed(seed: int, step: int) -> int:
    """Well-mixed and the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest(), "big") >> 1
