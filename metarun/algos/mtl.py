"""Multi-task learning by hard parameter sharing: one trunk, one head for each of a fixed set of tasks.

    gradient of  mean over the batch's tasks t of L(head_t ∘ trunk)      meta_grad
    a new task: a new head on unit features, φₖ₊₁ = φₖ − α ∇L_support(φₖ)      adapt

α is `inner_lr`. A group of classes (an alphabet of Omniglot) is a task; all are trained jointly. `test_adapt: head`
keeps the trunk and fits the new head, `all` fine-tunes everything.

Caruana: Multitask Learning. Machine Learning 28, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarun.maths.fit import fit_all, fit_head, read_head, unit_features
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import Batch, Heads, Metrics, Outputs, ParallelMap, Params, Rate


@dataclass(frozen=True)
class MultiTask:
    net: Net
    task_heads: Heads
    inner_lr: Rate
    test_adapt: Literal["head", "all"]

    trains_on: ClassVar[str] = "group"

    def init(self, generator: torch.Generator) -> Params:
        return self.net.with_heads(self.task_heads).init(generator)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        fit = fit_head if self.test_adapt == "head" else fit_all
        return fit(self.net, params, support, self.inner_lr, steps)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return read_head(self.net, fast, unit_features(self.net, fast, x))

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        shared = self.net.with_heads(self.task_heads)

        def loss(params: Params, task: Batch) -> tuple[Tensor, Metrics]:
            return judge(self.task_heads, shared(params, task.x), task.y)

        return parallel.mean_grad(loss, params, batch)
