from __future__ import annotations

import os
import sys

import pytest
import torch

from metarun.engine.device import free_memory, keep_freed_memory, peak_memory_mb, pick, seed_draws
from metarun.errors import UserError

CURRENT: list[int] = []


def have(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
    monkeypatch.setattr(torch.cuda, "set_device", CURRENT.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "name"),
    [(False, False, "cpu"), (True, False, "cuda:0"), (False, True, "mps:0"), (True, True, "cuda:0")],
)
def test_auto_takes_the_first_accelerator_there_is(
    cuda: bool, mps: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, cuda, mps)
    assert str(pick("auto", 0, None)) == name
    assert str(pick("cpu", 0, None)) == "cpu"


def test_free_memory_is_less_than_all_there_is() -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 10_000_000 < free_memory(torch.device("cpu")) < everything


def test_free_memory_of_a_device_counts_what_torch_keeps_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("memory_reserved", 30), ("memory_allocated", 10), ("mem_get_info", (500, 900))):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert free_memory(torch.device("cuda:0")) == 520


def test_index_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cuda=True, mps=False)
    assert str(pick("cuda", 1, None)) == "cuda:1" and CURRENT[-1] == 1
    with pytest.raises(UserError, match=r"device.index=2: there are 2 CUDA devices, counted from 0"):
        pick("cuda", 2, None)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UserError, match=rf"device={kind}: this machine .* has none. Take device=auto or device=cpu"):
        pick(kind, 0, None)  # type: ignore[arg-type]


def test_threads_are_those_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        pick("cpu", 0, 2)
        assert torch.get_num_threads() == 2
        pick("cpu", 0, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory_mb(torch.device("cpu"))
    torch.ones(60, 2**18)  # 60 MB
    after = peak_memory_mb(torch.device("cpu"))
    assert 20 < before <= after < 100_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory()


def test_elsewhere_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_seeding_at_every_step_leaves_nothing_behind() -> None:
    """torch.manual_seed keeps a traceback of each call for devices that were never used."""
    seed_draws(torch.device("cpu"), 3)
    drawn = torch.rand(4)
    queued = len(torch.cuda._queued_calls)
    seed_draws(torch.device("cpu"), 3)
    assert torch.equal(torch.rand(4), drawn)
    assert len(torch.cuda._queued_calls) == queued
