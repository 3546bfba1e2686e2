"""The modules that a network is made of: a backbone, one output layer for all heads, or a backbone for each head."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metarun.maths.norm import BatchNorm
from metarun.types import Params, UserError


class Network(nn.Module):
    """A backbone and one linear layer wide enough for all heads."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(int(trunk.features), outputs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class OwnTrunks(nn.Module):
    """A trunk for each head, side by side: features [B, H, D]."""

    def __init__(self, trunks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.own = nn.ModuleList(trunks)
        self.features = int(trunks[0].features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([trunk(x) for trunk in self.own], 1)


def side_by_side(networks: Sequence[Network]) -> Network:
    """One network of several, with the outputs of all."""
    joined = Network(OwnTrunks([network.trunk for network in networks]), sum(n.head.out_features for n in networks))
    with torch.no_grad():
        joined.head.weight.copy_(torch.cat([network.head.weight for network in networks]))
        joined.head.bias.copy_(torch.cat([network.head.bias for network in networks]))
    return joined


def refuse_unfit(trunk: object, group: str) -> None:
    """What is no backbone, one without a width, and one that keeps running statistics."""
    if not isinstance(trunk, nn.Module):
        raise UserError(f"{group}: a {type(trunk).__name__} is no torch.nn.Module. Name a class that is one.")
    try:
        features = operator.index(trunk.features)  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        features = 0
    if features < 1:
        raise UserError(
            f"{group}: {type(trunk).__name__} does not say how wide its output is. "
            "Set its `features` to the number of values that it gives for one input."
        )
    for name, module in trunk.named_modules():
        own = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
        if own or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{group}: {name} is a {type(module).__name__}, whose running statistics no task owns. "
                "Take metarun.maths.norm.BatchNorm in its place."
            )


@contextmanager
def statistics_noted(module: nn.Module, seen: Params) -> Iterator[None]:
    """Meanwhile notes the mean and variance of what every batch norm of the module gets."""

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
