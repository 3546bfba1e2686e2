"""Transfer: ordinary supervised training on all training classes, the baseline every comparison needs.

    ∇L(head ∘ trunk) over all classes at once                                  meta_grad
    a new task: a new head on unit features, φₖ₊₁ = φₖ − α ∇L_support(φₖ)      adapt

α is `inner_lr`. `test_adapt: head` keeps the trunk and fits the new head, `all` fine-tunes everything.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification. ICLR 2019, arXiv 1904.04232.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from metarun.maths import new_head
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import PROTOCOL, Batch, Metrics, Outputs, ParallelMap, Params, Rate


@dataclass(frozen=True)
class Transfer:
    net: Net
    inner_lr: Rate
    test_adapt: Annotated[Literal["head", "all"], PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        return self.net.init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        return new_head.fit(self.net, params, support, self.inner_lr, steps, self.test_adapt)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return new_head.predict(self.net, fast, x)

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        def loss(params: Params, task: Batch) -> tuple[Tensor, Metrics]:
            return judge(self.net.heads, self.net(params, task.x), task.y)

        return parallel.mean_grad(loss, params, batch)
