"""Meta multi-task learning: an initialisation from which a few gradient steps solve a new task of several heads.

    φ₀ = θ,  φₖ₊₁ = φₖ − α Σ_h w_h ∇L_h,support(φₖ)                       adapt
    Σ_h v_h ∇_θ (L_h,query(φ_K) over the tasks of a step)                   meta_grad, `outer: maml` and `fomaml`
    θ − mean over tasks of φ_K                                              meta_grad, `outer: reptile`

h runs over the heads, α is `inner_lr`, K is `inner_steps`; trunk and heads are adapted together. The weights w and v
are the balance's, in the loops that `balanced` names; elsewhere each head counts alike. With weights that are all the
same it is MAML, or Reptile, on tasks of several heads.

The outer balance weighs all of the network, since each entry of θ moves each head's query loss through the inner steps;
a balance of slopes asks for K ways back through them. The inner one weighs the trunk by slopes of its own, and starts
anew in each task; to the derivative by θ its weights are constants.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017, arXiv 1703.03400.
Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv 1803.02999.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from metarun.maths.balanced import Objectives, balanced, kept, of_heads, weighed
from metarun.maths.inner import descend, displacement, last, query_grad, sgd
from metarun.maths.losses import by_head
from metarun.maths.net import HEAD, TRUNK, Net
from metarun.types import (
    MEMORY,
    NOW,
    PROTOCOL,
    Balance,
    Batch,
    Episode,
    Metrics,
    Outputs,
    ParallelMap,
    Params,
    Rate,
    Score,
    Steps,
    UserError,
)

INNER = f"{MEMORY}inner."  # θ's entries that the inner balance starts from in each task, under their own names


@dataclass(frozen=True)
class MetaMultiTask:
    net: Net
    balance: Balance
    outer: Annotated[Literal["maml", "fomaml", "reptile"], PROTOCOL]
    balanced: Annotated[Literal["outer", "inner", "both"], PROTOCOL]
    inner_lr: Rate
    inner_steps: Steps

    def __post_init__(self) -> None:
        if self.outer == "reptile" and self.balanced == "outer":
            raise UserError(
                "algo.balanced=outer: algo.outer=reptile has no losses to weigh in its outer loop. "
                "Take algo.balanced=inner, or algo.outer=maml."
            )
        if self.outer_weighs and self.balance.needs == "features":
            raise UserError(
                f"algo.balanced={self.balanced}: {type(self.balance).__name__} weighs heads by features that they "
                "share, and queries' losses share the initialisation alone. Take algo.balanced=inner, or another "
                "balance, as balance=mgda."
            )

    @property
    def first_order(self) -> bool:
        """Whether the outer loop leaves out how the inner slopes depend on θ."""
        return self.outer != "maml"

    @property
    def outer_weighs(self) -> bool:
        return self.outer != "reptile" and self.balanced != "inner"

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        outer, inner = {}, {}
        if self.outer_weighs:
            outer = kept(self.balance, self.net, params, self._network(params))
        if self.balanced != "outer":
            inner = kept(self.balance, self.net, params, self.net.shared(params))
        told = {name: p for name, p in inner.items() if name.startswith(NOW)}
        return {**params, **told, **outer, **{INNER + name: p for name, p in inner.items()}}

    def _network(self, params: Params) -> list[str]:
        """Names of the learned entries that are no balance's."""
        return [name for part in (TRUNK, HEAD) for name in self.net.names(params, f"{part}*")]

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        if not len(support.x):
            raise UserError(
                "data.shots=0: there is nothing to adapt to, and algo=mmtl learns to adapt. Give 1 or more, or take "
                "algo=mtl."
            )
        net, own = replace(self.net, half=False), self._network(params)  # inner steps are of full precision

        def mean(fast: Params, support: Batch, _: int) -> Tensor:
            return net.loss(fast, support)

        def mixed(fast: Params, support: Batch, _: int) -> Params:
            slope, entries = weighed(self.balance, of_heads(net, fast), fast, support, own)
            return {**slope, **entries}

        if self.balanced == "outer":
            path = sgd(mean, params, support, self.inner_lr, steps, own, self.first_order)
        else:
            fresh = _fresh(params)
            moving = [*own, *(name for name in fresh if not name.startswith(NOW))]
            path = descend(mixed, {**params, **fresh}, support, self.inner_lr, steps, moving, self.first_order)
        for fast in path:
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        if self.outer == "reptile":
            return displacement(self, params, episode, parallel, self.inner_steps)
        if not self.outer_weighs:
            return query_grad(self, params, episode, parallel, self.inner_steps)
        heads = self.net.heads

        def adapted(params: Params, task: Episode) -> Tensor:
            fast = last(self.adapt(params, task.support, self.inner_steps))
            return torch.cat([*self.predict(fast, task.query.x).values()], -1)

        def score(params: Params, outputs: Tensor, task: Episode) -> Score:
            each = self.net.read(outputs)
            if outputs.ndim == 3:  # [B, H, outputs]: each head by itself
                each = {name: each[name][:, h] for h, name in enumerate(heads)}
            return by_head(heads, each, task.query.y)

        alone = all(head.alone for head in heads.values())
        objectives = Objectives([*heads], adapted, score, self._network(params), alone)
        return balanced(self.balance, objectives, params, episode, parallel)


def _fresh(params: Params) -> Params:
    """What the inner balance begins a task with. Of the numbers that are told it takes as many as it needs."""
    fresh = {name.removeprefix(INNER): p for name, p in params.items() if name.startswith(INNER)}
    told = {n: params[n].flatten()[: p.numel()].view_as(p) for n, p in fresh.items() if n.startswith(NOW)}
    return {**fresh, **told}
