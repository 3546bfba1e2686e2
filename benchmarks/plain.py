"""The same computations as a careful reader of PyTorch's documentation writes them: a loop over tasks.

Each leaves the meta-gradient in the parameters' `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.types import Episode, Params

Loss = Callable[[Tensor, Tensor], Tensor]


def tasks_of(episode: Episode) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support x and y, query x and y of each task; there is one head."""
    (support_y,), (query_y,) = episode.support.y.values(), episode.query.y.values()
    return list(zip(episode.support.x, support_y, episode.query.x, query_y, strict=True))


def maml(model: nn.Module, loss: Loss, episode: Episode, lr: float, steps: int) -> None:
    tasks = tasks_of(episode)
    for support_x, support_y, query_x, query_y in tasks:
        fast: Params = dict(model.named_parameters())
        for _ in range(steps):
            inner = loss(functional_call(model, fast, (support_x,)), support_y)
            grads = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            fast = {name: p - lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        (loss(functional_call(model, fast, (query_x,)), query_y) / len(tasks)).backward()


def reptile(model: nn.Module, loss: Loss, episode: Episode, lr: float, steps: int) -> None:
    """Without the query pass that metarun makes for its metrics."""
    tasks = tasks_of(episode)
    start = dict(model.named_parameters())
    moves = {name: torch.zeros_like(p) for name, p in start.items()}
    for x, y, _, _ in tasks:
        fast = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
        for _ in range(steps):
            grads = torch.autograd.grad(loss(functional_call(model, fast, (x,)), y), list(fast.values()))
            with torch.no_grad():
                for p, g in zip(fast.values(), grads, strict=True):
                    p.sub_(g, alpha=lr)
        with torch.no_grad():
            for name, p in start.items():
                moves[name] += (p - fast[name]) / len(tasks)
    for name, p in start.items():
        p.grad = moves[name]


def multi_task(trunk: nn.Module, heads: Sequence[nn.Module], batch: tuple[Tensor, Tensor, list[int]]) -> None:
    x, y, task = batch  # [T, B, ...], [T, B], and the head of each
    losses = [F.cross_entropy(heads[t](trunk(x[i])), y[i]) for i, t in enumerate(task)]
    torch.stack(losses).mean().backward()


def trunk(backbone: Mapping[str, Any], shape: Sequence[int]) -> nn.Sequential:
    """The layers that a backbone's YAML describes; its parameters come in the order of metarun's."""
    kind = backbone["_target_"].rpartition(".")[2]
    if kind == "MLP":
        widths = [math.prod(shape), *backbone["hidden"]]
        return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())))
    wiring = list(pairwise([shape[0], *backbone["channels"]]))
    layers: list[nn.Module] = []
    if kind == "ResNet12":
        layers = [Residual(a, b) for a, b in wiring]
    else:
        for a, b in wiring:
            layers += [nn.Conv2d(a, b, 3, backbone["stride"], padding=1, bias=False), norm(b), nn.ReLU()]
            if backbone["pool"] > 1:
                layers.append(nn.MaxPool2d(backbone["pool"]))
    whole = kind == "CNN" and backbone["flatten"]
    return (
        nn.Sequential(*layers, nn.Flatten()) if whole else nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Residual(nn.Module):
    """A stage of ResNet-12, without DropBlock."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a in (inputs, outputs, outputs):
            layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False), norm(outputs), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.body(x) + self.shortcut(x), 0.1), 2)
