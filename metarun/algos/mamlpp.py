"""MAML++: MAML made stable, by a loss after every inner step and by what is learned for each step by itself.

    φ₀ = θ,  φₖ₊₁ = φₖ − r_k ∇L_support(φₖ)                       adapt
    ∇_(θ, r)  mean over tasks of Σ_k w_k L_query(φₖ), k = 1 ... K   meta_grad

K is `inner_steps`. A step size r is learned for each tensor and step; all start at `inner_lr`, those of further steps
at a test are the last. With t = step / `anneal_steps`, at most 1, w_k = (1 − t) / K for k < K, and w_K is the rest: the
loss after the last step alone counts in the end, as it does from the start with `multi_step: false`. The derivative's
order changes by `phases: {1000: {first_order: false}}`.
Scales and shifts of normalisation layers are learned for each φₖ, and no inner step moves them. The batch's own
statistics normalise it. With norm_stats=support, predictions are normalised by running statistics of queries,
kept for each φₖ; until there are any, by the support set's.

The paper's code: w_k is at least 0.03 / K until step `anneal_steps`, and 0 at once from there; φₖ₊₁ sees queries with
the scales and shifts of φₖ; running statistics are kept of all that passes, and nothing is normalised by them.

Antoniou, Edwards, Storkey: How to Train Your MAML. ICLR 2019, arXiv 1810.09502.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import sgd
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.maths.norm import BatchNorm
from metarun.types import (
    PROTOCOL,
    STEP,
    AtLeast,
    Batch,
    Episode,
    Metrics,
    Natural,
    Outputs,
    ParallelMap,
    Params,
    learned,
    memory,
)

RATE, RUNNING, PARTS = "rate.", "memory.running.", ("mean", "var")
MOMENTUM = 0.1  # of running statistics


@dataclass(frozen=True)
class MAMLPlusPlus:
    net: Net
    inner_lr: float
    inner_steps: Annotated[int, AtLeast(1, below=1001)]
    first_order: Annotated[bool, PROTOCOL]
    multi_step: Annotated[bool, PROTOCOL]
    anneal_steps: Natural

    def init(self, generator: torch.Generator) -> Params:
        params, norms, rows = self.net.init(generator), self.net.norm_names, self.inner_steps + 1
        rates = {RATE + n: torch.full((rows - 1,), self.inner_lr) for n in learned(params) if n not in norms}
        by_step = {n: p.expand(rows, *p.shape).clone() for n, p in params.items() if n in norms}
        layers = self.net.module.named_modules() if self.net.norm_stats == "support" else []
        sizes = {name: len(m.weight) for name, m in layers if isinstance(m, BatchNorm)}
        unknown = {
            f"{RUNNING}{name}.{part}": torch.full((rows, n), math.nan) for name, n in sizes.items() for part in PARTS
        }
        return {**params, **by_step, **rates, **unknown, STEP: torch.zeros(())}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted = [name for name in learned(params) if RATE + name in params]

        def loss(fast: Params, support: Batch, step: int) -> Tensor:
            return self.net.loss(self._at(fast, step), support)

        def descent(fast: Params, slope: Params, step: int) -> Params:
            row = min(step, self.inner_steps - 1)
            return {name: fast[name] - fast[RATE + name][row] * g for name, g in slope.items()}

        for step, fast in enumerate(sgd(loss, params, support, descent, steps, adapted, self.first_order)):
            yield self._given(self._at(fast, step), support, step)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        def loss(params: Params, task: Episode) -> tuple[Tensor, Metrics]:
            path = list(self.adapt(params, task.support, self.inner_steps))
            asked = path[1:] if self.multi_step else path[-1:]
            judged = [judge(self.net.heads, self.predict(fast, task.query.x), task.query.y) for fast in asked]
            losses = torch.stack([loss for loss, _ in judged])
            total = (self.weights(params[STEP], len(losses)) * losses).sum()
            return total, {**judged[-1][1], "loss": total.detach(), **self._seen(path, task.query.x)}

        slope, found = parallel.mean_grad(loss, params, episode)
        seen = {name: found.pop(name) for name in memory(found)}
        kept = {n: torch.where(params[n].isnan(), t, params[n].lerp(t, MOMENTUM)) for n, t in seen.items()}
        return {**slope, **kept}, found

    def weights(self, step: Tensor, losses: int) -> Tensor:
        """What the loss after each inner step counts for in a meta-step."""
        early = (1 - step / max(self.anneal_steps, 1)).clamp(min=0) / losses
        return torch.cat([early.expand(losses - 1), 1 - (losses - 1) * early[None]])

    def _at(self, fast: Params, step: int) -> Params:
        """φ with the scales and shifts of a step."""
        row = min(step, self.inner_steps)
        return {**fast, **{name: fast[name][row] for name in self.net.norm_names if name in fast}}

    def _given(self, fast: Params, support: Batch, step: int) -> Params:
        """φ with the statistics that its predictions are normalised by."""
        if self.net.norm_stats == "batch":
            return fast
        own, row = self.net.statistics(fast, support.x), min(step, self.inner_steps)
        kept = {name: fast[RUNNING + name][row] for name in own}
        return {**fast, **{name: torch.where(kept[name].isnan(), own[name], kept[name]) for name in own}}

    def _seen(self, path: list[Params], x: Tensor) -> Params:
        """Statistics of inputs under each φ: what is to be known of a task for the running ones."""
        if self.net.norm_stats == "batch":
            return {}
        with torch.no_grad():
            each = [self.net.statistics(fast, x) for fast in path]
        return {RUNNING + name: torch.stack([seen[name] for seen in each]) for name in each[0]}
