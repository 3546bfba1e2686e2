"""Transfer: ordinary supervised training on all training classes, from scratch or from what a finished run learned.

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

What a finished run, the source, hands over is said by `mode`:

    feature     its trunk, which stays as it is
    model       all weights, as a start: a stage d below the output layer moves at (layer_rate)ᵈ of the outer rate
    target      (1 − λ) L + λ T² KL(teacher ‖ student): its network is the teacher, λ is `soft`, T is `temperature`

As a student descends on a new task's support set (`test_adapt` head or all), the teacher has been fitted to it before,
and what it makes of images without a label there counts too.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification. ICLR 2019, arXiv 1904.04232.
Wang, Chao, Weinberger, van der Maaten: SimpleShot. 2019, arXiv 1911.04623.
Qi, Brown, Lowe: Low-Shot Learning with Imprinted Weights. CVPR 2018, arXiv 1712.07136.
Tian, Wang, Krishnan, Tenenbaum, Isola: Rethinking Few-Shot Image Classification. ECCV 2020, arXiv 2003.11539.
Yosinski, Clune, Bengio, Lipson: How transferable are features in deep neural networks? NeurIPS 2014, arXiv 1411.1792.
Howard, Ruder: Universal Language Model Fine-tuning. ACL 2018, arXiv 1801.06146 (rates by layer, gradual unfreezing).
Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.maths import closed_head, new_head, supervised
from metarun.maths.distil import soft_loss
from metarun.maths.losses import judge, labelled, loss
from metarun.maths.net import Net
from metarun.maths.source import Pretrained, begun, on_features, told_by, with_teacher
from metarun.types import (
    PROTOCOL,
    AtLeast,
    AtMost,
    Batch,
    Metrics,
    Outputs,
    ParallelMap,
    Params,
    Positive,
    Rate,
    Targets,
    UserError,
    learned,
)

TAUGHT = "taught."  # a support set's entries for what the teacher makes of it


@dataclass(frozen=True)
class Transfer:
    net: Net
    source: Pretrained | None
    mode: Literal["feature", "model", "target"] | None
    head: Annotated[Literal["linear", "cosine"], PROTOCOL]
    inner_lr: Rate
    test_adapt: Annotated[Literal["head", "all", "centroid", "imprint", "logistic"], PROTOCOL]
    layer_rate: Positive
    frozen: Sequence[str]
    soft: Annotated[float, AtLeast(0), AtMost(1)]
    temperature: Positive

    def __post_init__(self) -> None:
        if self.mode and not self.source:
            raise UserError(f"algo.mode={self.mode} takes over from a run. Name it, as algo.source=RUN_DIR.")
        if self.source and not self.mode:
            raise UserError("algo.source needs to know what to take over. Add algo.mode=feature, model or target.")

    def init(self, generator: torch.Generator) -> Params:
        params = self._begun(supervised.init(self.net, generator, self.head))
        self._check_frozen(params)
        return params

    def check_trainable(self) -> None:
        if self._teacher and not self._teacher.trained:
            raise UserError(
                "algo.mode=target: the source has no output layer for the classes that this run trains. Name one that "
                "was trained on them, or take train.steps=0, which tests what a student learns from few images."
            )

    def pace(self, params: Params) -> dict[str, float]:
        return {name: self.layer_rate**depth for name, depth in self.net.depths(params).items()}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        if self.test_adapt in ("head", "all"):
            yield from self._fitted(params, support, steps, self.test_adapt)
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
        judged = self._judged if self._teacher else None
        return supervised.gradient(self.net, params, batch, parallel, self._still(params), judged)

    @cached_property
    def _teacher(self) -> Net | None:
        """The network that a student learns from, with the heads of the tasks at hand."""
        return self.source.net.testing(self.net.heads) if self.source and self.mode == "target" else None

    def _begun(self, fresh: Params) -> Params:
        """θ with what the source hands over."""
        if self.source is None:
            return fresh
        if self.mode == "target":
            return with_teacher(fresh, self.source)
        return (on_features if self.mode == "feature" else begun)(self.net, fresh, self.source)

    def _still(self, params: Params) -> set[str]:
        """The learned entries that training leaves alone."""
        return {name for pattern in self.frozen for name in self.net.names(params, pattern)}

    def _check_frozen(self, params: Params) -> None:
        """Refuses patterns of which one leaves out nothing, or which leave out everything."""
        for pattern in self.frozen:
            if not self.net.names(params, pattern):
                raise UserError(
                    f"algo.frozen names {pattern}, which no learned entry matches. There are "
                    f"{', '.join(learned(params))[:200]}."
                )
        if learned(params).keys() == self._still(params):
            raise UserError(
                f"algo.frozen={list(self.frozen)} leaves nothing to train. Name fewer, or take train.steps=0."
            )

    def _judged(self, params: Params, batch: Batch, outputs: Outputs) -> tuple[Tensor, Metrics]:
        """The loss of a student, and metrics."""
        assert self._teacher is not None
        hard, metrics = judge(self.net.heads, outputs, batch.y)
        rows = {name: labelled(head, batch.y[name]) for name, head in self.net.heads.items()}
        total = self._mixed(hard, outputs, told_by(self._teacher, params, batch), rows)
        return total, {**metrics, "loss": total.detach()}

    def _mixed(self, hard: Tensor, outputs: Outputs, taught: Outputs, rows: Mapping[str, Tensor]) -> Tensor:
        """(1 − λ) L + λ T² KL(teacher ‖ student), the latter over the rows of each head that count."""
        return (1 - self.soft) * hard + self.soft * soft_loss(self.net.heads, outputs, taught, rows, self.temperature)

    def _fitted(self, params: Params, support: Batch, steps: int, moving: Literal["head", "all"]) -> Iterator[Params]:
        """Descends on the support set; a student, on what its teacher makes of that, too: of all rows, where any of a
        head has a label."""
        if self._teacher is None or not len(support.x):
            return new_head.fit(self.net, params, support, self.inner_lr, steps, moving)
        taught = {TAUGHT + name: told for name, told in told_by(self._teacher, params, support).items()}

        def objective(outputs: Outputs, y: Targets) -> Tensor:
            told = {name: y[TAUGHT + name] for name in self.net.heads}
            rows = {n: labelled(head, y[n]).any().expand(len(y[n])) for n, head in self.net.heads.items()}
            return self._mixed(loss(self.net.heads, outputs, y), outputs, told, rows)

        return new_head.fit(
            self.net, params, Batch(support.x, {**support.y, **taught}), self.inner_lr, steps, moving, objective
        )

    def _unit(self, params: Params, x: Tensor) -> Tensor:
        """Features of length 1, from the training mean where classes are told by their means."""
        features = self.net.features(params, x)
        return F.normalize(
            features - supervised.training_mean(params) if self.test_adapt == "centroid" else features, dim=-1
        )
