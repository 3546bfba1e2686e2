"""Multi-task learning by hard parameter sharing: one trunk, and a head for each task.

    Σ_h w_h ∇L_h(head_h ∘ trunk)  over the heads h of this step, w by `balance`     meta_grad
    a new task: a new head on unit features, φₖ₊₁ = φₖ − α ∇L_support(φₖ)             adapt

α is `inner_lr`. The tasks are groups of classes (the alphabets of Omniglot), each with images of its own, or several
targets of one image: what `trains_on` names first and the data set has. Where the tasks to be tested are those that
were trained, their heads are kept. `test_adapt: head` keeps the trunk and fits the heads, `all` fine-tunes everything.

Caruana: Multitask Learning. Machine Learning 28, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from metarun.maths import new_head
from metarun.maths.balanced import Objectives, balanced
from metarun.maths.losses import by_head
from metarun.maths.net import Net
from metarun.types import PROTOCOL, Balance, Batch, Metrics, Outputs, ParallelMap, Params, Rate, Score


@dataclass(frozen=True)
class MultiTask:
    net: Net
    balance: Balance
    inner_lr: Rate
    test_adapt: Annotated[Literal["head", "all"], PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        shared = sum(params[name].numel() for name in self.net.shared(params))
        return {**params, **self.balance.init(len(self.net.trained), shared)}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        return new_head.fit(self.net, params, support, self.inner_lr, steps, self.test_adapt)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return new_head.predict(self.net, fast, x)

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        def features(params: Params, task: Batch) -> Tensor:
            return self.net.features(params, task.x)

        def score(params: Params, seen: Tensor, task: Batch) -> Score:
            return by_head(self.net.heads, self.net.output(params, seen), task.y)

        alone = all(head.alone for head in self.net.heads.values())
        objectives = Objectives([*self.net.heads], features, score, self.net.shared(params), alone)
        return balanced(self.balance, objectives, params, batch, parallel)
