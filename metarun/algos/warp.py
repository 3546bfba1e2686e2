"""Warped MAML: each layer of the trunk is followed by a learned linear map, which inner steps do not move.

    y = T (W x + b)                                             each layer of the trunk, whose weights are so T W, T b
    φ₀ = θ = (W, T),  W_k+1 = W_k − α ∇_W L_support(T W_k)      adapt; T stays
    ∇_(W, T)  mean over tasks of L_query(T W_K)                 meta_grad

A step of W by −α g moves the layer's weights by −α T Tᵀ g_(T W): T preconditions the descent, for all tasks alike. W is
any learned weight of the trunk with two or more dimensions, b the bias beside it, T a square matrix over its outputs,
named `warp.` and what it maps. α is `inner_lr`, K is `inner_steps`. T starts as the identity, where this is MAML. All
else, norms and output layer included, is adapted as in MAML.
This is T-Nets' objective and its place for T. Their MT-nets learn a mask of what moves besides. WarpGrad puts warp
layers of any shape between those that adapt, and learns them by steps along the whole trajectory, without a derivative
through it; with `first_order` T is likewise learned from where it stands, but at the last step alone.

Lee, Choi: Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace. ICML 2018, arXiv 1801.05558.
Flennerhag et al.: Meta-Learning with Warped Gradient Descent. ICLR 2020, arXiv 1909.00025.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import (
    PROTOCOL,
    Batch,
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

WARP = "warp."


@dataclass(frozen=True)
class Warp:
    net: Net
    inner_lr: Rate
    inner_steps: Steps
    first_order: Annotated[bool, PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        params = self.net.init(generator)
        warped = [name for name in self.net.names(params, "trunk.*") if params[name].ndim > 1]
        if not warped:
            raise UserError(
                "algo=warp maps the outputs of the backbone's layers, and this one has none that learns. Take one that "
                "has, as backbone=conv4, or another algorithm, as algo=maml."
            )
        return {**params, **{WARP + name: torch.eye(len(params[name])) for name in warped}}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted = [name for name in learned(params) if not name.startswith(WARP)]

        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(through(fast), support)

        for fast in sgd(loss, params, support, self.inner_lr, steps, adapted, self.first_order):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net(through(fast), x)

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, self.inner_steps)


def through(params: Params) -> Params:
    """The entries that the network uses: T W and T b in place of W and b."""
    mapped: Params = {}
    for name, matrix in params.items():
        if name.startswith(WARP):
            weight = name.removeprefix(WARP)
            bias = weight.removesuffix("weight") + "bias"
            mapped |= {part: torch.tensordot(matrix, params[part], 1) for part in (weight, bias) if part in params}
    return {**params, **mapped}
