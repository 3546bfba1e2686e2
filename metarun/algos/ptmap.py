"""PT-MAP: queries are dealt to classes by optimal transport, EQUALLY MANY TO EACH CLASS. Transductive.

    f ← sign(f) |f|^β, to length 1, minus the mean of its own set (support or query), to length 1        z
    P = argmin Σ_qn P_qn ‖z_q − c_n‖² − H(P)/λ  over plans P ≥ 0 of rows 1 and columns |Q|/N
    c_n ← c_n + α (mean of z, support rows by their class and queries by P_qn, − c_n)     `inner_steps` times
    logits = log P                                                                        predict
    ∇L(head ∘ trunk) over all training classes at once                                    meta_grad

c_n is at first the mean z of class n's support rows, and the trunk is trained as `transfer`'s and fixed then. β is
`power`, λ `sharpness`, α `inner_lr`.

WHERE THE QUERIES ARE NOT EQUALLY MANY OF EACH CLASS THIS IS WRONG BY CONSTRUCTION, and a query that comes alone is
given to all classes alike. Benchmarks deal their queries equally; photos of one's own are not dealt so.

β = ½ makes the skewed features of a ReLU more like a Gaussian's. Negative features, which the paper's text leaves out,
keep their sign, as in its code. The plan is what `SINKHORN` rounds of Sinkhorn's arrive at, ending with its rows; the
paper's code stops at a tolerance. It reduces features by QR first, which changes no distance: left out.

Hu, Gripon, Pateux: Leveraging the Feature Distribution in Transfer-based Few-Shot Learning. ICANN 2021,
arXiv 2006.03806.
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

SINKHORN = 100  # rounds of scaling columns, then rows: columns are then right to a hundredth of a query


@dataclass(frozen=True)
class PTMAP:
    net: Net
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    power: Positive
    sharpness: Positive
    inner_lr: Rate
    inner_steps: Steps

    def init(self, generator: torch.Generator) -> Params:
        return supervised.init(self.net, generator, self.head)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        yield supervised.with_support(self.net, params, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        features, y = fast[supervised.FEATURES], fast[supervised.LABELS]
        _, ways = self.net.classes()
        known = membership(y, ways, features.dtype)
        support = self._prepared(features, known.sum(1))
        query = self._prepared(self.net.features(fast, x), features.new_ones(len(x)))
        means, rows = prototypes(support, y, ways)
        for _ in range(self.inner_steps):
            plan = transport(squared_distances(query, means), rows, self.sharpness)
            mass = (rows + plan.sum(0)).clamp(min=1)[:, None]  # of a class with a row it is more
            means = means + self.inner_lr * ((known.T @ support + plan.T @ query) / mass - means)
        plan = transport(squared_distances(query, means), rows, self.sharpness)
        return self.net.read(present(plan.clamp(min=torch.finfo(plan.dtype).tiny).log(), rows))

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return supervised.gradient(self.net, params, batch, parallel)

    def _prepared(self, features: Tensor, counts: Tensor) -> Tensor:
        """The features z of one set; `counts` is 1 for those rows that its mean is of, else 0."""
        unit = F.normalize(features.sign() * features.abs() ** self.power, dim=-1)
        return F.normalize(unit - counts @ unit / counts.sum().clamp(min=1), dim=-1)


def transport(cost: Tensor, rows: Tensor, sharpness: float) -> Tensor:
    """The plan [Q, N] of rows 1 and equal columns, 0 of classes without a row, with least cost − entropy/sharpness."""
    there = (rows > 0).to(cost.dtype)
    column = len(cost) * there / there.sum().clamp(min=1)
    tiny = torch.finfo(cost.dtype).tiny
    plan = there * (sharpness * (cost.amin(1, keepdim=True) - cost)).exp()
    for _ in range(SINKHORN):
        plan = plan * (column / plan.sum(0).clamp(min=tiny))
        plan = plan / plan.sum(1, keepdim=True).clamp(min=tiny)
    return plan
