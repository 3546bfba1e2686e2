"""In-context learner: a transformer reads the support set with its labels, and answers a query without any step.

    (h_b, v_b) = (E f(x_b), e_{y_b}),  then layer by layer over support rows b'               adapt
        a = softmax over b' of  q(h_b)·k(h_b') / √d + β ⟨v_b, v_b'⟩      (each head)
        h_b += Σ a value(h_b'),  v_b += mean over heads of s(h_b) (Σ a v_b' − v_b),  h_b += MLP(h_b)
    (h, v) = (E f(x), 0), through the same layers over the same rows                          predict
    logit_n = γ (cos(h, mean of h_b over class n) + ⟨v, e_n⟩)                                 predict
    ∇_θ  mean over tasks of L_query                                                           meta_grad

A token is features h and a label v; q, k and value are linear, and s is a sigmoid, after layer norm. Labels are
orthogonal unit vectors e_1 ... e_N, so all at one angle, and are met with in inner products and in weighted means
alone: to rename classes turns their space, and changes no number but its place; and a query's ⟨v, e_n⟩ is a share of
votes, from 0 to 1, among few rows as among many. So there may be any number of ways. There are no positions: rows are
a set. A query sees the rows, and no row or query sees a query. γ is learned by its logarithm, from `scale`.
SNAIL reads a sequence, with its order. CAML's tokens are features and label in one vector, those of a fixed number
of labels; its large transformer stands on a frozen CLIP; here it is small, and trained together with the trunk f.

Mishra, Rohaninejad, Chen, Abbeel: A Simple Neural Attentive Meta-Learner. ICLR 2018, arXiv 1707.03141.
Fifty, Duan, Junkins, Amid, Leskovec, Ré, Thrun: Context-Aware Meta-Learning. ICLR 2024, arXiv 2310.10971.
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
from metarun.types import Batch, Count, Episode, Metrics, Outputs, ParallelMap, Params, Positive, UserError

SCALE = "log_scale"
# φ's entries: support tokens before each layer and after the last [L+1, B, ...], and [B, N] whose class is whose
FEATURES, LABELS, MEMBER = "context.features", "context.labels", "context.member"


@dataclass(frozen=True)
class InContext:
    net: Net
    layers: Count
    heads: Count
    width: Count
    scale: Positive

    def __post_init__(self) -> None:
        _ = self.reader  # made now, since what draws numbers cannot be made inside vmap

    @cached_property
    def reader(self) -> Part:
        return Part.build("reader", lambda: Reader(self.net.width, self.width, self.layers, self.heads))

    def init(self, generator: torch.Generator) -> Params:
        self.net.classes()
        if self.width % self.heads:
            raise UserError(f"algo.width={self.width} cannot be shared by algo.heads={self.heads}. Give a multiple.")
        start = {SCALE: torch.tensor(float(self.scale)).log(), **self.reader.init(generator)}
        return {**self.net.init(generator, head=False), **start}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        name, ways = self.net.classes()
        seen = self.net.features(params, support.x)  # the support set's statistics are its batch's own
        member = membership(support.y[name], ways, seen.dtype)
        features, labels = self.reader(params, seen, member, member.sum(1) > 0)
        yield {**self.net.given(params, support), FEATURES: features, LABELS: labels, MEMBER: member}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        member, seen = fast[MEMBER], self.net.features(fast, x)
        none = seen.new_zeros(len(x), member.shape[1])
        features, labels = self.reader(fast, seen, none, member.sum(1) > 0, (fast[FEATURES], fast[LABELS]))
        means = F.normalize(member.T @ fast[FEATURES][-1], dim=1)
        logits = fast[SCALE].exp() * (F.normalize(features[-1], dim=1) @ means.T + labels[-1])
        return self.net.read(present(logits, member.sum(0)))

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        return query_grad(self, params, episode, parallel, steps=0)


class Reader(nn.Module):
    """All layers, for support rows or for queries."""

    def __init__(self, inputs: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(
        self, x: Tensor, v: Tensor, known: Tensor, support: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs [A, D] with labels v [A, N] -> h [L+1, A, W] and v [L+1, A, N], before each layer and after the last.

        They look at the tokens of `support` before the same layer, or, without it, at each other; `known` [B] tells
        which of these have a label: the others are not seen.
        """
        tokens = [(self.embed(x), v)]
        for i, layer in enumerate(self.layers):
            rows = tokens[i] if support is None else (support[0][i], support[1][i])
            tokens.append(layer(*tokens[i], *rows, known))
        h, v = (torch.stack(part) for part in zip(*tokens, strict=True))
        return h, v


class Layer(nn.Module):
    """Attention of tokens (h [A, W], v [A, N]) to rows ([B, W], [B, N]), then a layer of hidden units for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.norm_up = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.back, self.gates = nn.Linear(width, width), nn.Linear(width, heads)
        self.same = nn.Parameter(torch.ones(heads, 1, 1))  # β
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for last in (self.back, self.down):  # a layer begins as the identity of h
            nn.init.zeros_(last.weight)

    def forward(self, h: Tensor, v: Tensor, rows: Tensor, row_v: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        seen, rows = self.norm(h), self.norm(rows)
        query, key, value = (self._by_head(t) for t in (self.query(seen), self.key(rows), self.value(rows)))
        scores = query @ key.mT / query.shape[-1] ** 0.5 + self.same * (v @ row_v.T)  # [heads, A, B]
        attention = scores.masked_fill(~known, torch.finfo(h.dtype).min).softmax(-1)
        h = h + self.back((attention @ value).transpose(0, 1).flatten(1))
        v = v + (self.gates(seen).sigmoid().T[..., None] * (attention @ row_v - v)).mean(0)
        return h + self.down(F.gelu(self.up(self.norm_up(h)))), v

    def _by_head(self, t: Tensor) -> Tensor:
        """[A, W] -> [heads, A, W / heads]."""
        return t.unflatten(1, (len(self.same), -1)).transpose(0, 1)
