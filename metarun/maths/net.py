"""A network as a pure function of its parameters: a backbone, an output layer, and heads to read it by."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.maths.losses import loss
from metarun.maths.network import Network, refuse_unfit, side_by_side, statistics_noted
from metarun.maths.norm import NORMS, BatchNorm
from metarun.types import MEMORY, Batch, Heads, Outputs, Params, Penalised, UserError, learned

TRUNK, HEAD = "trunk.", "head."
OWN = "trunk.own."  # parts of a trunk that one head alone uses: `trunk.own.2.` is of the third
_STAGE = re.compile(r"^.*?\.\d+(?=\.)")  # what the names of a stage's entries have in common: `trunk.blocks.0`
SUPPORT = "support.x"  # φ's entry for the images whose statistics normalise its predictions


def width(heads: Heads) -> int:
    """Outputs that the heads take together."""
    return sum(head.size for head in heads.values())


@dataclass(frozen=True)
class Net:
    """`net(params, x)` -> outputs by head.

    `heads` are those of the tasks at hand, `trained` those that θ has an output layer for.
    norm_stats "batch": batch norm uses the statistics of the rows it predicts (transductive).
    norm_stats "support": those of the support set, which φ carries (inductive); see `given`.
    half: the trunk computes in bfloat16; parameters, their gradients, the output layer and the loss stay as they are.
    by_head: the trunk is a sharing architecture, which gives each of the trained heads features of its own.
    apart: every head has a trunk of its own, and nothing is shared; see `separate`.
    """

    make_trunk: Callable[[], nn.Module]
    heads: Heads
    trained: Heads
    norm_stats: str
    half: bool
    module: Network
    by_head: bool = False
    apart: bool = False

    @staticmethod
    def build(
        make_trunk: Callable[[], nn.Module], heads: Heads, norm_stats: str, half: bool = False, by_head: bool = False
    ) -> Net:
        with torch.random.fork_rng(devices=[]):
            trunk = make_trunk()
            refuse_unfit(trunk, "sharing" if by_head else "backbone")
            module = Network(trunk, width(heads))
        return Net(make_trunk, heads, heads, norm_stats, half, module, by_head)

    def init(self, generator: torch.Generator, head: bool = True) -> Params:
        """Parameters as the generator draws them, with or without the output layer; frozen ones as memory."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            fresh = self._drawn(seed)
        named = {(n if p.requires_grad else MEMORY + n): p.detach() for n, p in fresh.named_parameters()}
        return {name: p for name, p in named.items() if head or not name.startswith(HEAD)}

    def _drawn(self, seed: int) -> Network:
        """Networks apart are those that each head alone would have of this seed."""
        outputs = [head.size for head in self.trained.values()] if self.apart else [width(self.trained)]
        drawn = []
        for size in outputs:
            torch.manual_seed(seed)
            drawn.append(Network(self.make_trunk(), size))
        return side_by_side(drawn) if self.apart else drawn[0]

    def separate(self) -> Net:
        """The same network for each head by itself: `features` are [B, H, D], and no entry is of two heads."""
        with torch.random.fork_rng(devices=[]):
            alone = [Network(deepcopy(self.module.trunk), head.size) for head in self.trained.values()]
            module = side_by_side(alone).train(self.module.training)
        return replace(self, module=module, apart=True)

    def testing(self, heads: Heads) -> Net:
        """The same network for tasks with these heads: without dropout, in full precision."""
        if self.by_head and _sizes(heads) != _sizes(self.trained):
            raise UserError(
                f"sharing= gives each of the {len(self.trained)} trained heads features of its own, and the tasks to "
                f"test have {_words(heads)}. Leave it out, or take data whose test has the trained heads."
            )
        return replace(self, heads=heads, module=deepcopy(self.module).eval(), half=False)

    def to(self, device: torch.device) -> Net:
        """With the module's own tensors (buffers, which no dict holds) on a device."""
        self.module.to(device)
        return self

    @property
    def width(self) -> int:
        """D: how many features the trunk gives, for all heads alike."""
        self._refuse_features_of_each_head()
        return int(self.module.trunk.features)  # type: ignore[arg-type]

    def classes(self) -> tuple[str, int]:
        """The name and the number of the classes to tell apart; tasks of another kind are refused."""
        name, head = next(iter(self.heads.items()))
        if len(self.heads) > 1 or head.kind != "class":
            found = ", ".join(f"{name} ({head.kind})" for name, head in self.heads.items())[:120]
            raise UserError(
                f"this algorithm tells the classes of one head apart, and these tasks have {found}. "
                "Take data of one class head, as data=omniglot, or another algorithm, as algo=maml."
            )
        return name, head.size

    @property
    def fits(self) -> bool:
        """Whether the output layer of θ is that of the tasks at hand."""
        return _sizes(self.heads) == _sizes(self.trained)

    def names(self, params: Params, pattern: str) -> list[str]:
        """Names of the learned entries that match, as `trunk.*` or `*.bias`."""
        return fnmatch.filter(learned(params), pattern)

    def shared(self, params: Params) -> list[str]:
        """Names of the learned entries that several heads use."""
        return [name for name in self.names(params, f"{TRUNK}*") if not name.startswith(OWN)]

    def depths(self, params: Params) -> dict[str, int]:
        """How far below the output layer, which has 0, each learned entry lies: the trunk's last stage has 1.

        A stage is an entry of one of the trunk's lists of layers; layers between such lists are one stage together.
        """
        found = dict.fromkeys(learned(params), 0)
        stages = groupby(reversed(self.names(params, f"{TRUNK}*")), lambda name: _STAGE.findall(name)[:1])
        return found | {name: depth for depth, (_, names) in enumerate(stages, 1) for name in names}

    @cached_property
    def batch_norm(self) -> bool:
        """Whether predictions depend on the statistics of a batch."""
        return any(isinstance(module, BatchNorm) for module in self.module.modules())

    @cached_property
    def norm_names(self) -> frozenset[str]:
        """Names of the parameters that belong to normalisation layers."""
        return frozenset(
            f"{layer}.{name}"
            for layer, module in self.module.named_modules()
            if isinstance(module, NORMS)
            for name, _ in module.named_parameters(recurse=False)
        )

    def given(self, fast: Params, support: Batch) -> Params:
        """φ, with what it needs of its support set to predict: nothing, or its statistics' source."""
        return fast if self.norm_stats == "batch" else {**fast, SUPPORT: support.x}

    def statistics(self, params: Params, x: Tensor) -> Params:
        """Mean and variance of each batch norm's input where the trunk sees x, named as φ's entries for them."""
        seen: Params = {}
        with statistics_noted(self.module.trunk, seen):
            functional_call(self.module.trunk, _trunk_of(params), (x,))
        return {TRUNK + name: t for name, t in seen.items()}

    def seen(self, params: Params, x: Tensor) -> Tensor:
        """What the output layer sees: [B, D], or of each head by itself [B, H, D]."""
        return self._pass(self.module.trunk, "", params, x)

    def features(self, params: Params, x: Tensor) -> Tensor:
        """What the output layer sees, for an algorithm that asks for features of all heads alike: [B, D]."""
        self._refuse_features_of_each_head()
        return self.seen(params, x)

    def _refuse_features_of_each_head(self) -> None:
        if self.by_head:
            raise UserError(
                "sharing= gives each head features of its own, and this algorithm asks for those of all heads alike. "
                "Leave it out, or take an algorithm that reads them by its heads alone, as algo=mtl or algo=maml."
            )

    @property
    def penalised(self) -> bool:
        """Whether the trunk asks for more to be descended than the loss."""
        return isinstance(self.module.trunk, Penalised)

    def penalty(self, params: Params) -> Tensor:
        """What a trunk that is penalised asks to be descended beside the loss."""
        trunk = self.module.trunk
        assert isinstance(trunk, Penalised)
        return trunk.penalty(_trunk_of(params))

    def maps(self, params: Params, x: Tensor) -> Tensor:
        """Feature maps before they are pooled or flattened: [B, C, H, W], of a trunk that states its `stages`."""
        name, stages = self._stages
        return self._pass(stages, f"{name}.", params, x)

    @property
    def channels(self) -> int:
        """C: how many channels the feature maps have, which the last convolution gives."""
        widths = [m.out_channels for m in self._stages[1].modules() if isinstance(m, nn.Conv2d)]
        return widths[-1] if widths else self.width

    @property
    def _stages(self) -> tuple[str, nn.Module]:
        """What computes the feature maps, and its name."""
        self._refuse_features_of_each_head()
        stages = getattr(self.module.trunk, "stages", None)
        if not isinstance(stages, nn.Module):
            raise UserError("this backbone states no stages, so it has no feature maps. Take conv4 or resnet12.")
        kinds = {type(layer) for layer in stages.modules()}
        if nn.Linear in kinds and nn.Conv2d not in kinds:
            raise UserError("this backbone's stages are of vectors, not of feature maps. Take conv4 or resnet12.")
        return next(named for named in self.module.trunk.named_modules() if named[1] is stages)

    def _pass(self, module: nn.Module, prefix: str, params: Params, x: Tensor) -> Tensor:
        """x through a part of the trunk."""
        if SUPPORT in params:
            params = {**params, **self.statistics(params, params[SUPPORT])}
        entries = {n.removeprefix(prefix): p for n, p in _trunk_of(params).items() if n.startswith(prefix)}
        if self.half:  # torch.autocast does nothing inside vmap
            entries = {name: p.bfloat16() for name, p in entries.items()}
            return functional_call(module, entries, (x.bfloat16(),)).to(x.dtype)
        return functional_call(module, entries, (x,))

    def read(self, logits: Tensor) -> Outputs:
        """Outputs by head."""
        parts = logits.split([head.size for head in self.heads.values()], dim=-1)
        return dict(zip(self.heads, parts, strict=True))

    def linear(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Outputs:
        """Outputs by head of a linear layer, whose rows are the heads', on features of all [B, D] or each [B, H, D]."""
        if features.ndim == 2:
            return self.read(F.linear(features, weight, bias))
        sizes = [head.size for head in self.heads.values()]
        biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        each = zip(self.heads, features.unbind(-2), weight.split(sizes), biases, strict=True)
        return {name: F.linear(*part) for name, *part in each}

    def __call__(self, params: Params, x: Tensor) -> Outputs:
        return self.output(params, self.seen(params, x))

    def output(self, params: Params, features: Tensor) -> Outputs:
        """Outputs by head of the output layer that θ was trained with; other heads than its own are refused."""
        if not self.fits:
            raise UserError(
                f"the output layer that this algorithm learns is for {_words(self.trained)}, and the tasks to test "
                f"have {_words(self.heads)}. Make train.ways and test.ways the same, or take an algorithm without one."
            )
        return self.linear(features, params["head.weight"], params["head.bias"])

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """What an inner step descends: never in half precision, whose noise a large step size would magnify."""
        return loss(self.heads, replace(self, half=False)(params, batch.x), batch.y)


def _trunk_of(params: Params) -> Params:
    """The entries that the trunk uses, under its own names; frozen ones are kept as memory."""
    named = ((name.removeprefix(MEMORY), p) for name, p in params.items())
    return {name.removeprefix(TRUNK): p for name, p in named if name.startswith(TRUNK)}


def _sizes(heads: Heads) -> list[tuple[str, str, int]]:
    """What an output layer has to have."""
    return [(name, head.kind, head.size) for name, head in heads.items()]


def _words(heads: Heads) -> str:
    return ", ".join(f"{name} ({head.size})" for name, head in heads.items())[:120]
