"""Proto-MAML: MAML whose output layer starts, in each task, as the prototypes of its support set.

    c_n = mean of f(x) over the support rows x of class n
    φ₀ = θ with the output layer W_n = 2 c_n,  b_n = −‖c_n‖²      adapt
    φₖ₊₁ = φₖ − α ∇L_support(φₖ)
    ∇_θ  mean over tasks of L_query(φ_K)                           meta_grad

f is the trunk, and all that θ holds: tasks to train on and to test on may have any number of ways each. φ₀ is ProtoNet:
W_n·f + b_n is −‖f − c_n‖² but for a number that all classes share. α is `inner_lr`, K is `inner_steps`; they move trunk
and output layer, each by its own slope. The outer derivative runs through the prototypes, and with `first_order` not
through the steps, as in the paper. A class without a support row is chosen for no query.

Triantafillou et al.: Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples. ICLR 2020,
arXiv 1903.03096.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.maths.new_head import LAYER
from metarun.maths.prototypes import present, prototypes
from metarun.types import PROTOCOL, Batch, Episode, Metrics, Outputs, ParallelMap, Params, Rate, Steps, learned


@dataclass(frozen=True)
class ProtoMAML:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        return self.net.init(generator, head=False)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        means, rows = prototypes(self.net.features(params, support.x), support.y[name], ways)
        layer = dict(zip(LAYER, (2 * means, present(-means.square().sum(1), rows)), strict=True))
        start, net = {**params, **layer}, self._fitted

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return net.loss(fast, support)

        for fast in sgd(loss, start, support, self.inner_lr, steps, learned(start), self.first_order):
            yield net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self._fitted(fast, x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)

    @property
    def _fitted(self) -> Net:
        """The network with an output layer for the task's own ways: that of φ."""
        return replace(self.net, trained=self.net.heads)
