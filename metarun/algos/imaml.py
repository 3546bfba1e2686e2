"""iMAML: MAML whose meta-gradient is that of where the inner steps lead, not of the way there.

    φ₀ = θ,  φₖ₊₁ = φₖ − α (∇L_support(φₖ) + λ (φₖ − θ))                     adapt
    mean over tasks of u,  ((1 + δ) I + H / λ) u = ∇L_query(φ_K)               meta_grad;  H = ∇²L_support(φ_K)

α is `inner_lr`, K is `inner_steps`, λ is `proximal`. With δ = 0 (`damping`), u is ∂φ/∂θ ∇L_query at the minimum φ of
L_support(φ) + λ/2 ‖φ − θ‖²: if φ_K is near it, the way there need not be kept, and memory does not grow with K. u is
found by `cg_steps` iterations of conjugate gradients from 0, of products with H alone; 0 of them take ∇L_query for u.

The paper's code has no pull in its inner steps, but one step of it at their end, and none in a test. It damps twice: by
δ, and by H / (λ + 10); here by δ alone.

Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients. NeurIPS 2019, arXiv 1909.04630.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarun.maths.gradient import gradient
from metarun.maths.implicit import curvature_solve
from metarun.maths.inner import last, sgd
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import (
    Batch,
    Episode,
    Metrics,
    Natural,
    Outputs,
    ParallelMap,
    Params,
    Positive,
    Rate,
    Steps,
    learned,
)


@dataclass(frozen=True)
class ImplicitMAML:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    proximal: Positive
    cg_steps: Natural
    damping: Rate

    first_order: ClassVar[bool] = True  # an approximation: how far the steps are from their minimum is left out

    def init(self, generator: torch.Generator) -> Params:
        return self.net.init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        def pulled(fast: Params, slope: Params, _: int) -> Params:
            return {n: fast[n] - self.inner_lr * (g + self.proximal * (fast[n] - params[n])) for n, g in slope.items()}

        for fast in sgd(loss, params, support, pulled, steps, learned(params), first_order=True):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        def query_loss(fast: Params, query: Batch) -> Tensor:
            return judge(self.net.heads, self.predict(fast, query.x), query.y)[0]

        def implicit(params: Params, task: Episode) -> tuple[Params, Metrics]:
            fast, names = last(self.adapt(params, task.support, self.inner_steps)), list(learned(params))
            _, metrics = judge(self.net.heads, self.predict(fast, task.query.x), task.query.y)
            slope = gradient(query_loss, fast, names, task.query)
            if self.cg_steps == 0:
                return slope, metrics
            at = {name: fast[name] for name in params}
            system = 1 / self.proximal, 1 + self.damping, self.cg_steps
            return curvature_solve(self.net.loss, at, names, slope, *system, task.support), metrics

        with torch.no_grad():
            return parallel.mean(implicit, params, episode)
