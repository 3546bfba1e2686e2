"""Meta-SGD: MAML with a step size of its own for every single parameter, learned along with the initialisation.

    φ₀ = θ,  φₖ₊₁ = φₖ − r ∘ ∇L_support(φₖ)              adapt
    ∇_(θ, r)  mean over tasks of L_query(φ_K)            meta_grad

r has the shape of θ and may become negative: it holds the direction of the step as well as its length. Its entries are
named `rate.` and the name of what they move. The paper starts them at random; here all start at `inner_lr`.
K is `inner_steps`, 1 in the paper.

Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017, arXiv 1707.09835.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import Batch, Episode, Metrics, Outputs, ParallelMap, Params, Steps, learned

RATE = "rate."


def descent(fast: Params, slope: Params, _: int) -> Params:
    """φ − r ∘ slope."""
    return {name: torch.addcmul(fast[name], fast[RATE + name], g, value=-1) for name, g in slope.items()}


@dataclass(frozen=True)
class MetaSGD:
    net: Net
    inner_lr: float
    inner_steps: Steps

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        return {**params, **{RATE + name: torch.full_like(p, self.inner_lr) for name, p in learned(params).items()}}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted = [name for name in learned(params) if not name.startswith(RATE)]

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        for fast in sgd(loss, params, support, descent, steps, adapted, first_order=False):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)
