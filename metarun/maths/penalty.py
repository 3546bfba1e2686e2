"""What a network asks to be descended beside the loss: a number that depends on its parameters and on no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.maths.gradient import grad
from metarun.maths.net import Net
from metarun.types import MetaGradient, Metrics, ParallelMap, Params


@dataclass(frozen=True)
class Penalty:
    """An algorithm's slopes with those of the network's penalty added, which no balance weighs.

    The metric `loss` stays the data's; `penalty` stands beside it.
    """

    algo: MetaGradient
    net: Net

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]:
        slope, metrics = self.algo.meta_grad(params, sample, parallel)

        def penalty(params: Params) -> tuple[Tensor, Tensor]:
            found = self.net.penalty(params)
            return found, found.detach()

        more, value = grad(penalty, params)
        return {**slope, **{name: slope[name] + s for name, s in more.items()}}, {**metrics, "penalty": value}
