"""Memory that is not there is refused before it is asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from metarun.engine import room
from metarun.engine.room import Room
from metarun.errors import UserError


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has one gigabyte free."""
    monkeypatch.setattr(room, "free_memory", lambda device: 10**9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(300_000_000, generator=torch.Generator()),
        lambda: torch.randint(9, (150_000_000,), generator=torch.Generator()),
        lambda: torch.empty((30_000, 10_000)),
        lambda: nn.Linear(30_000, 10_000),
        lambda: torch.zeros(2_000_000_000, dtype=torch.uint8),
        lambda: torch.randperm(150_000_000),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_its_key(make: object) -> None:
    words = r"^test\.tasks=7 takes [12] GB .* Lower it\."
    with Room("test.tasks=7", "Lower it"), pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]


def test_more_than_can_be_counted_is_refused() -> None:
    with Room("x=1", "Lower it"), pytest.raises(UserError, match="more than can be counted"):
        torch.rand(2**62, 2**62)


def test_what_fits_is_made_as_ever() -> None:
    alone = torch.rand(4, generator=torch.Generator().manual_seed(1))
    with Room("x=1", "Lower it"):
        assert torch.rand(4, generator=torch.Generator().manual_seed(1)).equal(alone)
        assert torch.empty(10**12, device="meta").numel() == 10**12


def test_all_that_is_made_counts_as_often_as_it_is_kept() -> None:
    with Room("x=1", "Lower it", copies=3):
        kept = [torch.empty(40_000_000), torch.empty(40_000_000)]  # 160 MB each
        with pytest.raises(UserError, match="x=1 takes 1 GB"):
            kept.append(torch.empty(10_000_000))


def test_outside_nothing_is_refused() -> None:
    with Room("x=1", "Lower it") as found:
        found.check(10**8, torch.device("cpu"))
    with pytest.raises(UserError, match="counted"):
        found.check(math.inf, torch.device("cpu"))
