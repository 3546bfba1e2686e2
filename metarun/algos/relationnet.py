"""Relation network: whether a query is of a class is not measured, but learned, by a network that sees both.

    c_n = mean of the feature maps f(x) over the support rows x of class n      adapt
    r_n = g([c_n, f(x)])                                                        predict
    ∇_θ  mean over tasks of L_query                                             meta_grad

f is the trunk before it is pooled. g, the relation module, sees the two side by side: two blocks of a 3x3 convolution,
norm, ReLU and a max-pool, the mean over positions, 8 hidden units, one score. The paper adds the maps of a class up,
which with more shots than in training is another scale: here they are averaged. It flattens what here is averaged over
positions, so that maps may be of any size. Its batch norm would have a query depend on the other pairs of its batch,
whatever `norm_stats` says: here it is group norm. With `loss: squared_error` the sigmoid of the score is regressed onto
1 for the query's class and 0 for others, as in the paper; with `cross_entropy` scores are logits.

Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare: Relation Network for Few-Shot Learning. CVPR 2018,
arXiv 1711.06025.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.maths.inner import last
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.maths.norm import norm_layer
from metarun.maths.part import Part
from metarun.maths.prototypes import membership, present, prototypes
from metarun.types import PROTOCOL, Batch, Episode, Metrics, Outputs, ParallelMap, Params

MEANS, ROWS = "relation.means", "relation.rows"  # φ's entries: [N, C, H, W], and [N] support rows behind each


@dataclass(frozen=True)
class RelationNet:
    net: Net
    loss: Annotated[Literal["cross_entropy", "squared_error"], PROTOCOL]

    def __post_init__(self) -> None:
        _ = self.relation  # made now, since what draws numbers cannot be made inside vmap

    @cached_property
    def relation(self) -> Part:
        return Part.build("relation", lambda: Relation(self.net.channels, 64))

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        return {**self.net.init(generator, head=False), **self.relation.init(generator)}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        maps = self.net.maps(params, support.x)  # the support set's statistics are its batch's own
        means, rows = prototypes(maps.flatten(1), support.y[name], ways)
        means = means.unflatten(1, maps.shape[1:])
        yield {**self.net.given(params, support), MEANS: means, ROWS: rows}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.net.read(present(self.relation(fast, fast[MEANS], self.net.maps(fast, x)), fast[ROWS]))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        name, ways = self.net.classes()

        def loss(params: Params, task: Episode) -> tuple[Tensor, Metrics]:
            outputs = self.predict(last(self.adapt(params, task.support, 0)), task.query.x)
            value, metrics = judge(self.net.heads, outputs, task.query.y)
            if self.loss == "cross_entropy":
                return value, metrics
            y = task.query.y[name]
            known, error = (y >= 0)[:, None], outputs[name].sigmoid() - membership(y, ways, value.dtype)
            value = (error.square() * known).sum() / known.sum().clamp(min=1)
            return value, {**metrics, "loss": value.detach()}

        return parallel.mean_grad(loss, params, episode)


class Relation(nn.Module):
    """Maps of classes [N, C, H, W] and of queries [Q, C, H, W] -> the score of each pair [Q, N]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        # One convolution of both maps side by side is the sum of one for each, which sees each map once.
        self.of_class = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.of_query = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(norm_layer("group", width) for _ in range(2))
        self.hidden, self.score = nn.Linear(width, 8), nn.Linear(8, 1)

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        pairs = self.of_query(queries)[:, None] + self.of_class(classes)
        x = _pooled(self.norms[0](pairs.flatten(0, 1)))
        x = _pooled(self.norms[1](self.conv(x))).mean((2, 3))
        return self.score(F.relu(self.hidden(x))).view(pairs.shape[:2])


def _pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x), 2, ceil_mode=True)  # a map of 1x1 stays
