"""Reptile: move the initialisation towards what each task's training arrives at.

    φ₀ = θ,  φₖ₊₁ = inner optimiser's step on the k-th mini-batch of the support set      adapt
    gradient for the outer optimiser: θ − mean over tasks of φ_K                           meta_grad

K is `inner_steps`; the outer step ε is `optim.lr` (SGD, from 1 to 0 in the paper). No second derivatives.
`inner_optim: adam` is Adam with β₁ = 0. Its second moment starts anew in each task (`inner_moment: task`), or goes on
from the mean of those that the last meta-step's tasks arrived at, in a test, too (`kept`); the paper's code keeps it
from each task to the next. Mini-batches of `inner_batch` rows run through the support set shot by shot, so each holds
every class equally often; the paper's code shuffles.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv 1803.02999.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from metarun.maths.inner import adam, displacement, moments, sgd
from metarun.maths.net import Net
from metarun.types import (
    PROTOCOL,
    Batch,
    Count,
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


@dataclass(frozen=True)
class Reptile:
    net: Net
    inner_optim: Annotated[Literal["sgd", "adam"], PROTOCOL]
    inner_lr: Rate
    inner_steps: Steps
    inner_batch: Count
    inner_moment: Annotated[Literal["task", "kept"], PROTOCOL]

    first_order: ClassVar[bool] = True

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        if self.inner_moment == "task":
            return params
        if self.inner_optim == "sgd":
            raise UserError(
                "algo.inner_moment=kept is about Adam, and algo.inner_optim=sgd has no moments. Take "
                "algo.inner_optim=adam, or algo.inner_moment=task."
            )
        return {**params, **moments(learned(params))}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        rows = len(support.x)
        size = min(self.inner_batch, rows)

        def loss(fast: Params, support: Batch, step: int) -> Tensor:
            if size == rows:
                return self.net.loss(fast, support)
            chosen = torch.arange(step * size, (step + 1) * size, device=support.x.device) % rows
            y = {head: target[chosen] for head, target in support.y.items()}
            return self.net.loss(fast, Batch(support.x[chosen], y))

        if self.inner_optim == "adam":
            trajectory = adam(loss, params, support, self.inner_lr, steps, learned(params))
        else:
            trajectory = sgd(loss, params, support, self.inner_lr, steps, learned(params), first_order=True)
        for fast in trajectory:
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return displacement(self, params, episode, parallel, self.inner_steps)
