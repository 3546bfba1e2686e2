"""BD-CSPN: class means, rectified by the queries that look like them. Transductive.

    z_q ← z_q + mean of support z − mean of query z                            the shift between the two sets
    k(q) = argmax_n cos(z_q, c_n),  c_n at first the mean z of class n's support rows
    c_n ← Σ_i v_i z_i / Σ_i v_i,  v_i = exp(ε cos(z_i, c_n)),
          over class n's support rows and the queries with k(q) = n            `inner_steps` times; the paper's: once
    logits = s cos(z_q, c_n)                                                   predict
    ∇L(head ∘ trunk) over all training classes at once                         meta_grad

z are features of length 1 of a trunk that is trained as `transfer`'s and fixed then; the paper trains a cosine head, as
`head: cosine` does. ε is `temperature`. `shift: false` leaves the queries where they are: the shift supposes that
queries are of the same classes as support rows and of each equally often, and puts a query that comes alone on the mean
of the support set. The paper lets the eight surest queries of each class count; here all do. s = 10 decides no choice.

Liu, Song, Qin: Prototype Rectification for Few-Shot Learning. ECCV 2020, arXiv 1911.10713.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths import new_head, supervised
from metarun.maths.net import Net
from metarun.maths.prototypes import membership, present, prototypes
from metarun.types import PROTOCOL, Batch, Metrics, Outputs, ParallelMap, Params, Rate, Steps


@dataclass(frozen=True)
class BDCSPN:
    net: Net
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    shift: Annotated[bool, PROTOCOL]
    temperature: Rate
    inner_steps: Steps

    def init(self, generator: torch.Generator) -> Params:
        return supervised.init(self.net, generator, self.head)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        yield supervised.with_support(self.net, params, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        support, y = F.normalize(fast[supervised.FEATURES], dim=-1), fast[supervised.LABELS]
        query = F.normalize(self.net.features(fast, x), dim=-1)
        _, ways = self.net.classes()
        means, rows = prototypes(support, y, ways)
        known = membership(y, ways, support.dtype)
        if self.shift:
            query = query + known.sum(1) @ support / rows.sum().clamp(min=1) - query.mean(0)
        z = torch.cat([support, query])
        for _ in range(self.inner_steps):
            guess = present(cosines(query, means), rows).argmax(1)
            member = torch.cat([known, membership(guess, ways, known.dtype)])
            weight = member * (self.temperature * (cosines(z, means) - 1)).exp()
            means = weight.T @ z / weight.sum(0).clamp(min=torch.finfo(weight.dtype).tiny)[:, None]
        return self.net.read(present(new_head.FIRST_SCALE * cosines(query, means), rows))

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return supervised.gradient(self.net, params, batch, parallel)


def cosines(x: Tensor, c: Tensor) -> Tensor:
    """[B, D] and [N, D] -> [B, N]."""
    return F.normalize(x, dim=-1) @ F.normalize(c, dim=-1).T
