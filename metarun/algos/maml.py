"""MAML: an initialisation from which a few gradient steps solve a new task.

    φ₀ = θ,  φₖ₊₁ = φₖ − α ∇L_support(φₖ)      adapt
    ∇_θ  mean over tasks of L_query(φ_K)        meta_grad

α is `inner_lr`, K is `inner_steps`. With `first_order`, φ_K depends on θ as if ∂φ_K/∂θ = I (FOMAML).
The paper's code sums the support loss over ways; `inner_loss: sum` does so, `mean` divides by their number.
It leaves the parameters of normalisation layers at θ; `adapt_norm: true` adapts them too.
`remat: true` computes the inner steps again on the way back: memory for one of them instead of all, a third more time.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017, arXiv 1703.03400.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net, width
from metarun.types import (
    COMPUTE_ONLY,
    PROTOCOL,
    Batch,
    Episode,
    Metrics,
    Outputs,
    ParallelMap,
    Params,
    Rate,
    Steps,
    learned,
)


@dataclass(frozen=True)
class MAML:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]
    inner_loss: Annotated[Literal["mean", "sum"], PROTOCOL]
    adapt_norm: Annotated[bool, PROTOCOL]
    remat: Annotated[bool, COMPUTE_ONLY]

    def init(self, generator: torch.Generator) -> Params:
        return self.net.init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        lr = self.inner_lr * (width(self.net.heads) if self.inner_loss == "sum" else 1)
        adapted = learned(params).keys() - (set() if self.adapt_norm else self.net.norm_names)

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        for fast in sgd(loss, params, support, lr, steps, adapted, self.first_order, self.remat):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)
