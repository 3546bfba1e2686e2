"""Multi-task learning by hard parameter sharing: one trunk, and a head for each task.

    Σ_h w_h ∇L_h(head_h ∘ trunk)  over the heads h of this step, w by `balance`     meta_grad
    Σ_h ∇L_h(head_h ∘ trunk_h)                                                        meta_grad with `single_task`
    a new task: a new head on unit features, φₖ₊₁ = φₖ − α ∇L_support(φₖ)             adapt

α is `inner_lr`. The tasks are groups of classes (the alphabets of Omniglot), each with images of its own, or several
targets of one image: what `trains_on` names first and the data set has. Where the tasks to be tested are those that
were trained, their heads are kept. `test_adapt: head` keeps the trunk and fits the heads, `all` fine-tunes everything.

With `single_task` nothing is shared: each head has a trunk of its own and descends its own loss, all on the same
batches, so that one run gives for each head what training it alone gives. No balance weighs anything then.

Caruana: Multitask Learning. Machine Learning 28, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from metarun.maths import new_head
from metarun.maths.balanced import Objectives, balanced, kept, of_heads
from metarun.maths.gradient import leaves_of
from metarun.maths.net import Net
from metarun.types import PROTOCOL, Balance, Batch, Metrics, Outputs, ParallelMap, Params, Rate, UserError


@dataclass(frozen=True)
class MultiTask:
    net: Net
    balance: Balance
    inner_lr: Rate
    test_adapt: Annotated[Literal["head", "all"], PROTOCOL]
    single_task: Annotated[bool, PROTOCOL]

    def __post_init__(self) -> None:
        if self.single_task and self.net.by_head:
            raise UserError(
                "algo.single_task=true: every head has a trunk of its own, and sharing= is about how heads share. "
                "Leave one of them out."
            )
        if self.single_task and self.balance.needs != "losses":
            raise UserError(
                "algo.single_task=true: heads share nothing, so a balance of gradients has nothing to weigh. "
                "Leave balance= out."
            )

    @cached_property
    def used(self) -> Net:
        """The network as it is trained and tested: shared, or apart."""
        return self.net.separate() if self.single_task else self.net

    def init(self, generator: torch.Generator) -> Params:
        params = self.used.init(generator)
        if self.single_task:
            return params
        return {**params, **kept(self.balance, self.net, params, self.net.shared(params))}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        if self.single_task and not self.net.fits:
            raise UserError(
                f"algo.single_task=true: each of the {len(self.net.trained)} heads has a trunk of its own, and the "
                "tasks to test have other heads. Take data whose test has those that are trained, as data=mnist_tasks."
            )
        return new_head.fit(self.used, params, support, self.inner_lr, steps, self.test_adapt)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return new_head.predict(self.used, fast, x)

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        objectives = of_heads(self.used, params)
        if self.single_task:
            return _each_alone(objectives, params, batch, parallel)
        return balanced(self.balance, objectives, params, batch, parallel)


def _each_alone(objectives: Objectives, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
    """∇ Σ_h L_h; where no entry is of two heads, each gets its own head's slope unweighed. `loss` is the sum."""
    leaves = leaves_of(params)
    losses, _, metrics = parallel.losses(objectives.whole, {**params, **leaves}, batch)
    slope = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return parallel.total(dict(zip(leaves, slope, strict=True))), {**metrics, "loss": losses.sum().detach()}
