"""Matching networks: a query asks every support row how alike they are, and takes their classes in that measure.

    a_b = softmax over support rows b of γ cos(f(x), g(x_b))      predict
    logit_n = log Σ_b a_b 1[y_b = n]                              predict
    ∇_θ  mean over tasks of L_query                               meta_grad

f and g are the trunk. With `full_context` they see the support set as well (the paper's appendix A): g adds to a row's
features what an LSTM has seen on its way through the rows to there, forwards and backwards; f adds to the query's what
an LSTM of `steps` steps has read out of g of all rows. The paper's order of rows is chance, and here that of the
support set: with `full_context` it changes predictions. γ is learned by its logarithm, from `scale`; the paper has none
(1 at all times). A class without a support row is chosen for no query.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning. NeurIPS 2016,
arXiv 1606.04080.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.maths.inner import query_grad
from metarun.maths.net import Net
from metarun.maths.part import Part
from metarun.maths.prototypes import membership, present
from metarun.types import Batch, Count, Episode, Metrics, Outputs, ParallelMap, Params, Positive

SCALE = "log_scale"
ROWS, MEMBERS = "matching.rows", "matching.members"  # φ's entries: g [B, D], and [B, N]: 1 where a row is of a class


@dataclass(frozen=True)
class MatchingNet:
    net: Net
    scale: Positive
    full_context: bool
    steps: Count

    def __post_init__(self) -> None:
        _ = self.full_context and self.context  # made now, since what draws numbers cannot be made inside vmap

    @cached_property
    def context(self) -> Part:
        return Part.build("context", lambda: Context(self.net.width, self.steps))

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        start = {**self.net.init(generator, head=False), SCALE: torch.tensor(float(self.scale)).log()}
        return {**start, **self.context.init(generator)} if self.full_context else start

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        members = membership(support.y[name], ways, support.x.dtype)
        rows = self.net.features(params, support.x)  # the support set's statistics are its batch's own
        if self.full_context:
            rows = self.context(params, rows, members.sum(1) > 0)
        yield {**self.net.given(params, support), ROWS: rows, MEMBERS: members}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        members, rows, query = fast[MEMBERS], fast[ROWS], self.net.features(fast, x)
        if self.full_context:
            query = self.context(fast, rows, members.sum(1) > 0, query)
        alike = fast[SCALE].exp() * F.normalize(query, dim=1) @ F.normalize(rows, dim=1).T  # [Q, B]
        attention = present(alike, members.sum(1)).log_softmax(1)
        return self.net.read(present(attention[:, None], members.T).logsumexp(2))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, steps=0)


class Cell(nn.Module):
    """One step of an LSTM; torch's own has no rule for vmap."""

    def __init__(self, inputs: int, seen: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + seen, 4 * width)

    def forward(self, x: Tensor, seen: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Input, what it has seen and its cell -> what it shows, and its next cell."""
        take, keep, new, show = self.gates(torch.cat([x, seen], -1)).chunk(4, -1)
        cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell


class Context(nn.Module):
    """Features [B, D] of support rows, and of queries [Q, D] where they are given, in the context of all rows."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.forwards, self.backwards = Cell(width, width, width), Cell(width, width, width)
        self.reading = Cell(width, 2 * width, width)

    def forward(self, rows: Tensor, known: Tensor, query: Tensor | None = None) -> Tensor:
        """`rows` are in their own context already where queries are given; `known` tells which count [B]."""
        return self._rows(rows, known) if query is None else self._queries(rows, known, query)

    def _rows(self, rows: Tensor, known: Tensor) -> Tensor:
        def along(cell: Cell, order: list[int]) -> Tensor:
            shown, kept, found = torch.zeros_like(rows[0]), torch.zeros_like(rows[0]), {}
            for b in order:
                fresh = cell(rows[b], shown, kept)
                shown, kept = (torch.where(known[b], new, old) for new, old in zip(fresh, (shown, kept), strict=True))
                found[b] = shown
            return torch.stack([found[b] for b in range(len(rows))])

        there = list(range(len(rows)))
        return rows + along(self.forwards, there) + along(self.backwards, there[::-1])

    def _queries(self, rows: Tensor, known: Tensor, query: Tensor) -> Tensor:
        shown = kept = torch.zeros_like(query)
        for _ in range(self.steps):
            read = (shown @ rows.T).masked_fill(~known, torch.finfo(rows.dtype).min).softmax(1) @ rows
            hidden, kept = self.reading(query, torch.cat([shown, read], 1), kept)
            shown = hidden + query
        return shown
