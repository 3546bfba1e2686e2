"""LaplacianShot: nearest centroids, and neighbouring queries are of one class. Transductive.

    cost_qn = ‖z_q − c_n‖²,  z = (f − m)/‖f − m‖,  c_n the mean z of class n's support rows
    minimise  Σ_q p_q·cost_q − H(p_q) − λ Σ over queries q and their neighbours r of p_q·p_r:
    p_q ← softmax(−cost_q + λ Σ over neighbours r of p_r)      `inner_steps` times                 predict
    ∇L(head ∘ trunk) over all training classes at once                                            meta_grad

f are features of a trunk that is trained as `transfer`'s and fixed then, m their mean over training images. λ is
`smoothness`; the neighbours of a query are the `neighbours` queries nearest to it. The paper chooses λ by validation
and its code rectifies the class means first, as `bdcspn` does: left out here. No class need have as many queries as
another, and a query that comes alone goes to the nearest centroid.

Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning. ICML 2020, arXiv 2006.15486.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths import supervised
from metarun.maths.net import Net
from metarun.maths.prototypes import present, prototypes, squared_distances
from metarun.types import PROTOCOL, Batch, Count, Metrics, Outputs, ParallelMap, Params, Rate, Steps

FAR = 1e30  # from a query to itself, so that it is none of its neighbours


@dataclass(frozen=True)
class LaplacianShot:
    net: Net
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    smoothness: Rate
    neighbours: Count
    inner_steps: Steps

    def init(self, generator: torch.Generator) -> Params:
        return supervised.init(self.net, generator, self.head)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        yield supervised.with_support(self.net, params, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        _, ways = self.net.classes()
        centre = supervised.training_mean(fast)
        support = F.normalize(fast[supervised.FEATURES] - centre, dim=-1)
        query = F.normalize(self.net.features(fast, x) - centre, dim=-1)
        means, rows = prototypes(support, fast[supervised.LABELS], ways)
        nearest = -squared_distances(query, means)
        linked = neighbours(query, self.neighbours)
        logits = present(nearest, rows)
        for _ in range(self.inner_steps):
            logits = present(nearest + self.smoothness * linked @ logits.softmax(-1), rows)
        return self.net.read(logits)

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return supervised.gradient(self.net, params, batch, parallel)


def neighbours(z: Tensor, count: int) -> Tensor:
    """Features [Q, D] -> [Q, Q]: 1 in a row for each of the `count` nearest others, or all there are; else 0."""
    every = torch.arange(len(z), device=z.device)
    distance = squared_distances(z, z) + FAR * (every[:, None] == every)
    chosen = distance.topk(min(count, len(z) - 1), largest=False).indices  # [Q, count]
    return (chosen[:, :, None] == every).any(1).to(z.dtype)
