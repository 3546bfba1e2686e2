"""Networks of two or three heads with a sharing architecture, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import yaml

from metarun.cli import CONF
from metarun.construct import construct
from metarun.maths.net import Net
from metarun.types import Batch, Head, Params

HEADS = {
    "digit": Head("class", 3, gaps=True),
    "parity": Head("class", 2, gaps=True),
    "ink": Head("value", 1, gaps=True),
}
BACKBONES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # shape of an input, and keys that keep it small
    "conv4": ((1, 8, 8), {"channels": [4, 5]}),
    "lenet": ((1, 16, 16), {"channels": [3, 4], "units": 6}),
    "mlp": ((5,), {"hidden": [6, 7]}),
    "resnet12": ((1, 8, 8), {"channels": [3, 4]}),
}
PLAIN = "none"  # no architecture at all


def _section(group: str, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / group / f"{name}.yaml").read_text()), **keys}


def _net(
    sharing: str,
    backbone: str = "conv4",
    heads: int = 2,
    norm_stats: str = "batch",
    half: bool = False,
    small: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Net:
    shape, few = BACKBONES[backbone]
    make = partial(construct, _section("backbone", backbone, few | (small or {})), "backbone", shape=shape)
    named = dict([*HEADS.items()][:heads])
    if sharing == PLAIN:
        return Net.build(make, named, norm_stats, half)
    given = {"make_trunk": make, "heads": heads, "shape": shape}
    made = partial(construct, _section("sharing", sharing, keys), "sharing", **given)
    return Net.build(made, named, norm_stats, half, by_head=True)


def _start(net: Net, seed: int = 0) -> Params:
    """θ in float64, moved a little from where norms and gates begin as constants."""
    dice = torch.Generator().manual_seed(seed)
    drawn = net.init(torch.Generator().manual_seed(seed))
    return {n: p.double() + 0.1 * torch.randn(p.shape, generator=dice, dtype=torch.float64) for n, p in drawn.items()}


def _batch(backbone: str = "conv4", rows: int = 6, seed: int = 0) -> Batch:
    """One batch of rows that all heads share [1, B, ...]; some digits are not known."""
    dice = torch.Generator().manual_seed(seed)
    digit = torch.arange(rows)[None] % 4 - 1
    y = {
        "digit": torch.where(digit < 0, -100, digit),
        "parity": digit.abs() % 2,
        "ink": torch.randn(1, rows, 1, generator=dice, dtype=torch.float64),
    }
    return Batch(torch.rand(1, rows, *BACKBONES[backbone][0], generator=dice, dtype=torch.float64), y)


@pytest.fixture
def shared_net() -> Callable[..., Net]:
    """shared_net(sharing, backbone, heads, norm_stats, half, small, **keys); sharing "none" is a plain trunk."""
    return _net


@pytest.fixture
def start() -> Callable[..., Params]:
    return _start


def _trunk(params: Params, prefix: str) -> Params:
    """One trunk among the entries of an architecture, named as those of a plain one."""
    return {f"trunk.{n.removeprefix(prefix)}": p for n, p in params.items() if n.startswith(prefix)}


@pytest.fixture
def trunk() -> Callable[..., Params]:
    """trunk(params, "trunk.own.0."): the entries of one trunk, named as those of a plain network."""
    return _trunk


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return _batch
