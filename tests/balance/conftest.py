"""Slopes to weigh, and TorchJD to weigh them with."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.types import Balance, Params

KINDS = ("random", "conflicting", "parallel", "dependent")


def _slopes(tasks: int, kind: str = "random", seed: int = 0) -> Tensor:
    """[H, 2 H + 1] in float64. Dependent ones have one in common twice; the mean opposes most conflicting ones."""
    slopes = torch.randn(tasks, 2 * tasks + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "conflicting":
        return slopes - 1.02 * slopes.mean(0)
    if kind == "parallel":
        return slopes[:1] + 0.03 * slopes
    if kind == "dependent":
        return torch.cat([slopes[:-1], slopes[:1]])
    return slopes


@pytest.fixture(
    params=[(tasks, kind) for tasks in (2, 5, 32) for kind in KINDS], ids=lambda case: f"{case[0]}-{case[1]}"
)
def slopes(request: pytest.FixtureRequest) -> Tensor:
    """Those of 2, 5 or 32 objectives, of each kind."""
    return _slopes(*request.param)


@pytest.fixture
def drawn_slopes() -> Callable[..., Tensor]:
    """drawn_slopes(tasks, kind, seed) -> [tasks, 2 tasks + 1]."""
    return _slopes


@pytest.fixture
def weighed() -> Callable[..., Tensor]:
    """weighed(balance, slopes, losses, kept) -> weights."""

    def weigh(balance: Balance, slopes: Tensor, losses: Tensor | None = None, kept: Params | None = None) -> Tensor:
        shown = slopes if balance.needs == "slopes" else slopes @ slopes.T
        losses = torch.ones(len(slopes), dtype=slopes.dtype) if losses is None else losses
        return balance(losses, shown, balance.init(*slopes.shape) if kept is None else kept)[0]

    return weigh


@pytest.fixture
def jd() -> ModuleType:
    return pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed: pip install metarun[dev]")


@pytest.fixture
def scalarization() -> ModuleType:
    return pytest.importorskip("torchjd.scalarization", reason="torchjd is not installed: pip install metarun[dev]")


@pytest.fixture
def cvxpy() -> Any:
    """The solver of some of TorchJD's, as exact as it can be."""
    return pytest.importorskip("cvxpy", reason="cvxpy is not installed: pip install metarun[dev]")
