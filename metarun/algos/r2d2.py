"""R2D2: ridge regression onto the classes, solved in closed form, on features learned to make that solution good.

    W = argmin ‖X W − Y‖² + λ ‖W‖² = (XᵀX + λI)⁻¹ XᵀY = Xᵀ (XXᵀ + λI)⁻¹ Y      adapt
    logits = α [f(x), 1] W                                                      predict
    ∇_θ  mean over tasks of L_query, through the solution                       meta_grad

X holds [f(x), 1] for each support row x, Y a row of 0 and one 1 (its class); the last row of W is a bias. Of the two
forms the one with the smaller matrix is solved. λ > 0 and α > 0 are learned by their logarithms, from `ridge` and
`scale`. The paper adds a learned number to all logits, which changes neither loss nor choice: left out. Its code
divides X and Y by the root of the number of rows, which makes λ grow with them; its text and this do not.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers. ICLR 2019,
arXiv 1805.08136.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths import new_head
from metarun.maths.inner import query_grad
from metarun.maths.net import Net
from metarun.maths.prototypes import membership, present
from metarun.types import Batch, Episode, Metrics, Outputs, ParallelMap, Params, Positive

RIDGE, SCALE = "log_ridge", "log_scale"


@dataclass(frozen=True)
class R2D2:
    net: Net
    ridge: Positive
    scale: Positive

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        start = {name: torch.tensor(float(v)).log() for name, v in ((RIDGE, self.ridge), (SCALE, self.scale))}
        return {**self.net.init(generator, head=False), **start}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        features = self.net.features(params, support.x)  # the support set's statistics are its batch's own
        y = support.y[name]
        known = (y >= 0).to(features.dtype)[:, None]
        rows = F.pad(features, (0, 1), value=1.0) * known  # [B, D+1]: a row of zeros counts for nothing
        targets = membership(y, ways, features.dtype)
        weight = params[SCALE].exp() * ridge_regression(rows, targets, params[RIDGE].exp()).T  # [N, D+1]
        bias = present(weight[:, -1], targets.sum(0))  # what no support row is of is chosen for no query
        fitted = dict(zip(new_head.LAYER, (weight[:, :-1], bias), strict=True))
        yield {**self.net.given(params, support), **fitted}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return new_head.read(self.net, fast, self.net.features(fast, x))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, steps=0)


def ridge_regression(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """The W [D, N] with least ‖x W − y‖² + ridge ‖W‖², for x [B, D] and y [B, N]."""
    rows, features = x.shape
    if rows <= features:
        return x.T @ _solve(x @ x.T, y, ridge)
    return _solve(x.T @ x, x.T @ y, ridge)


def _solve(gram: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """(gram + ridge I)⁻¹ y. torch.linalg.solve would wait for the device, to learn whether there is a solution."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_ex(gram + ridge * eye, y, check_errors=False)[0]
