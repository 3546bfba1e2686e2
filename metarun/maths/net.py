"""A network as a pure function of its parameters: a backbone, an output layer, and heads to read it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.maths.losses import judge
from metarun.maths.norm import NORMS, BatchNorm
from metarun.types import Batch, Heads, Outputs, Params

SUPPORT = "support.x"  # φ's entry for the images whose statistics normalise its predictions


class Network(nn.Module):
    """A backbone and one linear layer wide enough for all heads."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(int(trunk.features), outputs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def width(heads: Heads) -> int:
    """Outputs that the heads take together."""
    return sum(head.size for head in heads.values())


@dataclass(frozen=True)
class Net:
    """`net(params, x)` -> outputs by head.

    norm_stats "batch": batch norm uses the statistics of the rows it predicts (transductive).
    norm_stats "support": those of the support set, which φ carries (inductive); see `given`.
    half: the trunk computes in bfloat16; parameters, their gradients, the output layer and the loss stay as they are.
    """

    make_trunk: Callable[[], nn.Module]
    heads: Heads
    norm_stats: str
    half: bool
    module: Network

    @staticmethod
    def build(make_trunk: Callable[[], nn.Module], heads: Heads, norm_stats: str, half: bool = False) -> Net:
        with torch.random.fork_rng(devices=[]):
            return Net(make_trunk, heads, norm_stats, half, Network(make_trunk(), width(heads)))

    def init(self, generator: torch.Generator) -> Params:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = Network(self.make_trunk(), width(self.heads))
        return {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}

    def eval(self) -> Net:
        """The same network without dropout, in full precision."""
        return replace(self, module=deepcopy(self.module).eval(), half=False)

    def with_heads(self, heads: Heads) -> Net:
        return replace(self, heads=heads)

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

    def features(self, params: Params, x: Tensor) -> Tensor:
        """What the output layer sees: [B, D]."""
        trunk = {name.removeprefix("trunk."): p for name, p in params.items() if name.startswith("trunk.")}
        if SUPPORT in params:
            trunk = {**trunk, **_statistics(self.module.trunk, trunk, params[SUPPORT])}
        if self.half:  # torch.autocast does nothing inside vmap
            trunk = {name: p.bfloat16() for name, p in trunk.items()}
            return functional_call(self.module.trunk, trunk, (x.bfloat16(),)).to(x.dtype)
        return functional_call(self.module.trunk, trunk, (x,))

    def read(self, logits: Tensor) -> Outputs:
        """Outputs by head."""
        parts = logits.split([head.size for head in self.heads.values()], dim=-1)
        return dict(zip(self.heads, parts, strict=True))

    def __call__(self, params: Params, x: Tensor) -> Outputs:
        features = self.features(params, x)
        return self.read(nn.functional.linear(features, params["head.weight"], params["head.bias"]))

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """What an inner step descends: never in half precision, whose noise a large step size would magnify."""
        return judge(self.heads, replace(self, half=False)(params, batch.x), batch.y)[0]


def _statistics(module: nn.Module, params: Params, x: Tensor) -> Params:
    """Mean and variance of every batch norm's input when the module sees x, named as its entries."""
    seen: Params = {}
    with _recording(module, seen):
        functional_call(module, params, (x,))
    return seen


@contextmanager
def _recording(module: nn.Module, seen: Params) -> Iterator[None]:
    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [d for d in range(inputs[0].ndim) if d != 1]
            var, mean = torch.var_mean(inputs[0], axes, correction=0)
            seen.update({f"{name}.mean": mean, f"{name}.var": var})

        return hook

    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, BatchNorm)]
    handles = [m.register_forward_pre_hook(record(name)) for name, m in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
