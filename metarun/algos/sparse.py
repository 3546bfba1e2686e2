"""Sparse MAML: a task moves few parameters, because an inner step leaves those where they are that gain little.

    φ₀ = θ,  φₖ₊₁ = θ + soft(φₖ − α ∇L_support(φₖ) − θ, α τ)      adapt;  soft(d, t) = sign(d) max(|d| − t, 0)
    ∇_(θ, τ)  mean over tasks of L_query(φ_K)                      meta_grad

These are proximal steps (ISTA) on L_support(φ) + τ ‖φ − θ‖₁: what does not pull harder than τ is exactly θ. α is
`inner_lr`, K is `inner_steps`, τ is `threshold`; with 0 it is MAML. With `learn_threshold` each tensor has a τ, learned
by its logarithm (`log_threshold.` and the tensor's name) from there. `changed`, the share of entries of φ that are not
those of θ, is a metric.
To shrink towards θ by a meta-learned τ is ours, from two papers: ISTA shrinks towards 0; sparse-MAML multiplies slopes
by learned masks of 0 and 1, whose own slope it takes straight through.

Beck, Teboulle: A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems. SIAM Journal on Imaging
Sciences 2, 2009. von Oswald et al.: Learning where to learn: Gradient sparsity in meta and continual learning.
NeurIPS 2021, arXiv 2110.14402.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import (
    PROTOCOL,
    Batch,
    Episode,
    Metrics,
    Outputs,
    ParallelMap,
    Params,
    Rate,
    Steps,
    UserError,
    learned,
)

THRESHOLD, CHANGED = "log_threshold.", "metric.changed"


@dataclass(frozen=True)
class Sparse:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]
    threshold: Rate
    learn_threshold: bool

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        if not self.learn_threshold:
            return params
        if self.threshold == 0:
            raise UserError(
                "algo.threshold=0 has no logarithm to learn it by. Give more than 0, or algo.learn_threshold=false."
            )
        start = torch.tensor(float(self.threshold)).log()
        return {**params, **{THRESHOLD + name: start.clone() for name in learned(params)}}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted = [name for name in learned(params) if not name.startswith(THRESHOLD)]
        entries = sum(params[name].numel() for name in adapted)

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        def shrunk(fast: Params, slope: Params, _: int) -> Params:
            moved = {name: torch.sub(fast[name], g, alpha=self.inner_lr) for name, g in slope.items()}
            return {n: towards(params[n], p, self.inner_lr * self._threshold(params, n)) for n, p in moved.items()}

        for fast in sgd(loss, params, support, shrunk, steps, adapted, self.first_order):
            changed = torch.stack([(fast[name] != params[name]).sum(dtype=params[name].dtype) for name in adapted])
            yield {**self.net.given(fast, support), CHANGED: changed.sum() / entries}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)

    def _threshold(self, params: Params, name: str) -> Tensor | float:
        return params[THRESHOLD + name].exp() if self.learn_threshold else self.threshold


def towards(theta: Tensor, moved: Tensor, by: Tensor | float) -> Tensor:
    """θ + soft(moved − θ, by); exactly θ where no more is left, and exactly `moved` where `by` is 0."""
    way = (moved - theta).detach()
    return torch.where(way.abs() < by, theta, moved - by * way.sign())
