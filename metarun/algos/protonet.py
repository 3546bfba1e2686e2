"""ProtoNet: a class is the mean of its images' features, and a query belongs to the nearest.

    c_n = mean of f(x) over the support rows x of class n             adapt
    c_n ← mean of those and of rows of no class, each with the        `refine` times
          weight softmax_n −‖f(x) − c_n‖²
    logit_n = −‖f(x) − c_n‖²                                          predict
    ∇_θ  mean over tasks of L_query                                   meta_grad

f is the trunk; there is no output layer, so tasks to train on and to test on may have any number of ways each. Nothing
is adapted by steps: one φ, whatever `test.adapt_steps` says. A class without a support row is chosen for no query.
With `refine`, images whose class is not told (`data.unlabelled`) move the means: soft k-means, semi-supervised.
The paper trains with more ways than it tests with (`train.ways=60`). It normalises a test batch by the running
statistics of training; here `norm_stats` says by which.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017, arXiv 1703.05175.
Ren et al.: Meta-Learning for Semi-Supervised Few-Shot Classification. ICLR 2018, arXiv 1803.00676.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from metarun.maths.inner import query_grad
from metarun.maths.net import Net
from metarun.maths.prototypes import membership, present, prototypes, squared_distances
from metarun.types import PROTOCOL, AtLeast, Batch, Episode, Metrics, Outputs, ParallelMap, Params

MEANS, ROWS = "prototypes.means", "prototypes.rows"  # φ's entries: [N, D], and [N] support rows behind each


@dataclass(frozen=True)
class ProtoNet:
    net: Net
    refine: Annotated[int, AtLeast(0, below=1001), PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        return self.net.init(generator, head=False)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        features = self.net.features(params, support.x)  # the support set's statistics are its batch's own
        means, rows = prototypes(features, support.y[name], ways)
        for _ in range(self.refine):
            means = refined(features, support.y[name], means, rows)
        yield {**self.net.given(params, support), MEANS: means, ROWS: rows}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        logits = -squared_distances(self.net.features(fast, x), fast[MEANS])
        return self.net.read(present(logits, fast[ROWS]))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, steps=0)


def refined(features: Tensor, y: Tensor, means: Tensor, rows: Tensor) -> Tensor:
    """The means of rows of a class and, by how near they are to the `means`, of rows of none: [N, D]."""
    near = present(-squared_distances(features, means), rows).softmax(-1)  # [B, N]
    weights = torch.where(y[:, None] < 0, near, membership(y, len(means), features.dtype))
    return weights.T @ features / weights.sum(0).clamp(min=1e-6)[:, None]
