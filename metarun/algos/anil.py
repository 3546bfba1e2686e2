"""ANIL: MAML whose inner steps move the output layer alone, on features that are the same for every task.

    φ₀ = θ,  w_k+1 = w_k − α ∇_w L_support(φₖ)      adapt; w is the output layer, the trunk of φₖ that of θ
    ∇_θ  mean over tasks of L_query(φ_K)             meta_grad

α is `inner_lr`, K is `inner_steps`. With `first_order`, w_K depends on θ as if ∂w_K/∂w₀ = I: the trunk is then learned
from the query set alone. The trunk sees a task's support set once, whatever K is; so a step costs next to nothing.

Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML.
ICLR 2020, arXiv 1909.09157.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.losses import loss
from metarun.maths.net import Net
from metarun.maths.new_head import LAYER
from metarun.types import PROTOCOL, Batch, Episode, Metrics, Outputs, ParallelMap, Params, Rate, Steps


@dataclass(frozen=True)
class ANIL:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        return self.net.init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        features = self.net.seen(params, support.x)  # the support set's statistics are its batch's own
        start, seen = self.net.given(params, support), Batch(features, support.y)

        def of_features(fast: Params, seen: Batch, _: int) -> Tensor:
            return loss(self.net.heads, self.net.output(fast, seen.x), seen.y)

        return sgd(of_features, start, seen, self.inner_lr, steps, LAYER, self.first_order)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)
