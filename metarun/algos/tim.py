"""TIM: labels of all queries at once, by the mutual information between them and the features. Transductive.

    p_ik ∝ exp(−τ/2 ‖w_k − z_i‖²),  w_k at first the mean z of class k's support rows
    minimise  CE(support) − λ [H(mean over queries of p) − α mean over queries of H(p)]       predict
    ∇L(head ∘ trunk) over all training classes at once                                       meta_grad

z are features of length 1 of a trunk that is trained as `transfer`'s and fixed then. τ is `temperature`, λ
`information`, α `conditional`. The second term wants queries to be sure and classes to be used alike, though it does
not insist on equally many queries of each. A QUERY THAT COMES ALONE IS DRIVEN TO NO CLASS: it is the mean, too.

It is minimised by the paper's alternating directions (TIM-ADM), `inner_steps` times:

    q_ik ∝ p_ik^(1+α) / √Σ_i p_ik^(1+α)                                                     of a query i
    w_k ← w_k + Σ_i a_i (t_ik − p_ik)(z_i − w_k) / Σ_i a_i t_ik

with targets t = y, a = 1/|S| on support rows, and t = q, a = λ (1+α)/|Q| on queries: a slope step for given targets, of
a size that suits each class. The paper writes λ on the first term, 0.1 there: 10 here. It trains with label smoothing.

Boudiaf, Masud, Rony, Dolz, Piantanida, Ben Ayed: Transductive Information Maximization for Few-Shot Learning.
NeurIPS 2020, arXiv 2008.11297.
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
from metarun.maths.prototypes import membership, present, prototypes, squared_distances
from metarun.types import PROTOCOL, Batch, Metrics, Outputs, ParallelMap, Params, Positive, Rate, Steps


@dataclass(frozen=True)
class TIM:
    net: Net
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    temperature: Positive
    information: Rate
    conditional: Rate
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
        known, z = membership(y, ways, support.dtype), torch.cat([support, query])
        weight = torch.cat([known.sum(1) / rows.sum().clamp(min=1), self._weight(query)])[:, None]
        for _ in range(self.inner_steps):
            p = self._logits(means, rows, z).softmax(-1)
            error = weight * (torch.cat([known, self._labels(p[len(support) :])]) - p)
            mass = (error + weight * p).sum(0)[:, None]
            move = error.T @ z - error.sum(0)[:, None] * means
            means = means + move / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        return self.net.read(self._logits(means, rows, query))

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return supervised.gradient(self.net, params, batch, parallel)

    def _logits(self, means: Tensor, rows: Tensor, z: Tensor) -> Tensor:
        return present(-self.temperature / 2 * squared_distances(z, means), rows)

    def _weight(self, query: Tensor) -> Tensor:
        """What each query counts for, where each support row counts 1/|S|."""
        return query.new_full((len(query),), self.information * (1 + self.conditional) / len(query))

    def _labels(self, p: Tensor) -> Tensor:
        """The labels q [Q, N] that probabilities p ask for: surer ones, of less the more there are of a class."""
        sure = p ** (1 + self.conditional)
        q = sure / sure.sum(0).clamp(min=torch.finfo(p.dtype).tiny).sqrt()
        return q / q.sum(1, keepdim=True)
