"""Transfer: ordinary supervised training on all training classes, the baseline every comparison needs.

    ∇L(head ∘ trunk) over all classes at once                                  meta_grad
    a new task: a new head on unit features f of a fixed trunk, by `test_adapt`:

    head        φₖ₊₁ = φₖ − α ∇L_support(φₖ)                                   Baseline; of a cosine head: Baseline++
    all         the same step of the trunk as well
    centroid    the nearest mean of (f − m)/‖f − m‖, m that of training          SimpleShot, CL2N
    imprint     logits s ŵ_n·f, ŵ_n the mean of class n's f, scaled to length 1  weight imprinting
    logistic    argmin of Σ cross-entropy + ½‖W‖²                                logistic regression

α is `inner_lr`. `head` is what is trained on all classes, `linear` or `cosine`: logits s ŵ·f with a learned s. A new
linear head starts from zeros; a new cosine head from the imprinted weights, where the paper draws them. The paper's s
is fixed, and a learned length of each ŵ takes its place.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification. ICLR 2019, arXiv 1904.04232.
Wang, Chao, Weinberger, van der Maaten: SimpleShot. 2019, arXiv 1911.04623.
Qi, Brown, Lowe: Low-Shot Learning with Imprinted Weights. CVPR 2018, arXiv 1712.07136.
Tian, Wang, Krishnan, Tenenbaum, Isola: Rethinking Few-Shot Image Classification. ECCV 2020, arXiv 2003.11539.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths import closed_head, new_head, supervised
from metarun.maths.net import Net
from metarun.types import PROTOCOL, Batch, Metrics, Outputs, ParallelMap, Params, Rate


@dataclass(frozen=True)
class Transfer:
    net: Net
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    inner_lr: Rate
    test_adapt: Annotated[Literal["head", "all", "centroid", "imprint", "logistic"], PROTOCOL]

    def init(self, generator: torch.Generator) -> Params:
        return supervised.init(self.net, generator, self.head)

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        if self.test_adapt in ("head", "all"):
            yield from new_head.fit(self.net, params, support, self.inner_lr, steps, self.test_adapt)
            return
        name, ways = self.net.classes()
        given = self.net.given({n: p for n, p in params.items() if n != new_head.SCALE}, support)
        x, y = self._unit(given, support.x), support.y[name]
        if self.test_adapt == "centroid":
            weight, bias = closed_head.nearest(x, y, ways)
        elif self.test_adapt == "imprint":
            weight, bias = closed_head.imprinted(x, y, ways)
            weight = weight * (params[new_head.SCALE].exp() if self.head == "cosine" else new_head.FIRST_SCALE)
        else:
            weight, bias = closed_head.logistic(x, y, ways)
        yield {**given, new_head.WEIGHT: weight, new_head.BIAS: bias}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        if self.test_adapt in ("head", "all"):
            return new_head.predict(self.net, fast, x)
        return new_head.read(self.net, fast, self._unit(fast, x))

    def meta_grad(self, params: Params, batch: Batch, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return supervised.gradient(self.net, params, batch, parallel)

    def _unit(self, params: Params, x: Tensor) -> Tensor:
        """Features of length 1, from the training mean where classes are told by their means."""
        features = self.net.features(params, x)
        return F.normalize(
            features - supervised.training_mean(params) if self.test_adapt == "centroid" else features, dim=-1
        )
