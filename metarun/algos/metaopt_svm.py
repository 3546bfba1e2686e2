"""MetaOptNet-SVM: a support vector machine for many classes, on features learned to make its solution good.

    W = argmin ½ ‖W‖² + C Σ_b max over n of (1[n ≠ y_b] + w_n·f(x_b) − w_{y_b}·f(x_b))      adapt
    logits = γ W f(x)                                                                      predict
    ∇_θ  mean over tasks of L_query, through the solution                                  meta_grad

C is `penalty`; γ > 0 is learned by its logarithm, from `scale`. The dual problem is solved to the end in double
precision, and differentiated there by the implicit function theorem (see maths/svm.py): nothing of the way to the
solution is kept. A class without a support row takes no part in it and is chosen for no query. The paper smooths the
query's labels on some data sets; not here.

Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019, arXiv 1904.03758.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.maths.inner import query_grad
from metarun.maths.net import Net
from metarun.maths.prototypes import membership, present
from metarun.maths.svm import crammer_singer
from metarun.types import Batch, Episode, Metrics, Outputs, ParallelMap, Params, Positive, UserError

SCALE = "log_scale"
WEIGHT, ROWS = "svm.weight", "svm.rows"  # φ's entries: [N, D], and [N] support rows of each class


@dataclass(frozen=True)
class MetaOptSVM:
    net: Net
    penalty: Positive
    scale: Positive

    def init(self, generator: torch.Generator) -> Params:
        self._classes()
        return {**self.net.init(generator, head=False), SCALE: torch.tensor(float(self.scale)).log()}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self._classes()
        y = support.y[name]
        features = self.net.features(params, support.x)  # the support set's statistics are its batch's own
        weight = params[SCALE].exp() * crammer_singer(features, y, ways, self.penalty)
        rows = membership(y, ways, features.dtype).sum(0)
        yield {**self.net.given(params, support), WEIGHT: weight, ROWS: rows}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net.read(present(self.net.features(fast, x) @ fast[WEIGHT].T, fast[ROWS]))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, steps=0)

    def _classes(self) -> tuple[str, int]:
        name, ways = self.net.classes()
        if ways < 2:
            raise UserError("ways=1: algo=metaopt_svm separates classes. Give train.ways and test.ways of 2 or more.")
        return name, ways
