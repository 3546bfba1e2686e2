"""BOIL: MAML whose inner steps move the trunk alone: features change with the task, what reads them does not.

    φ₀ = θ,  b_k+1 = b_k − α ∇_b L_support(φₖ)      adapt; b is the trunk, the output layer of φₖ that of θ
    ∇_θ  mean over tasks of L_query(φ_K)             meta_grad

α is `inner_lr`, K is `inner_steps`. With `first_order`, b_K depends on θ as if ∂b_K/∂b₀ = I and on the output layer
not at all.

Oh, Yoo, Kim, Yun: BOIL: Towards Representation Change for Few-shot Learning. ICLR 2021, arXiv 2008.08882.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import PROTOCOL, Batch, Episode, Metrics, Outputs, ParallelMap, Params, Rate, Steps, UserError


@dataclass(frozen=True)
class BOIL:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        if not self.net.names(params, "trunk.*"):
            raise UserError(
                "algo=boil adapts the backbone, and this one has nothing that learns. Take one that has, as "
                "backbone=conv4, or adapt the output layer: algo=anil."
            )
        return params

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        trunk = self.net.names(params, "trunk.*")

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        for fast in sgd(loss, params, support, self.inner_lr, steps, trunk, self.first_order):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)
