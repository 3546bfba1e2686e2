from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metarun.engine import choice as room
from metarun.engine.choice import candidates, fastest, halved, named
from metarun.engine.mapping import Parallel
from metarun.errors import UserError

CPU = torch.device("cpu")
LOOP = Parallel("loop", 1)


@dataclass
class Timed:
    """An algorithm whose meta-gradient takes as long as told, by its own clock; None: more memory than there is."""

    seconds: dict[str, float | None]
    cold: float = 0.0  # what the first run of each mapping takes longer
    now: float = 0.0
    warm: set[str] = field(default_factory=set)

    def meta_grad(self, params: Any, sample: Any, parallel: Parallel) -> None:
        seconds = self.seconds[str(parallel)]
        if seconds is None:
            raise torch.OutOfMemoryError
        self.now += seconds + (0 if str(parallel) in self.warm else self.cold)
        self.warm.add(str(parallel))


def pick(seconds: dict[str, float | None], chunk: int | None = None, cold: float = 0.0) -> Any:
    algo = Timed(seconds, cold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: algo.now))
        return fastest(algo, {}, None, candidates(32, chunk, CPU), CPU)  # type: ignore[arg-type]


def test_the_fastest_is_picked_by_time() -> None:
    times = {"loop": 4.0, "vmap chunk 4": 3.5, "vmap chunk 8": 2.0, "vmap chunk 16": 1.0, "vmap chunk 32": 1.25}
    best, seconds = pick(times)
    assert best == Parallel("vmap", 16)
    assert seconds == pytest.approx(times)


@pytest.mark.parametrize("slow", [0.1, 1.0, 10.0])
def test_what_a_first_run_takes_longer_does_not_count(slow: float) -> None:
    times = {"loop": slow, "vmap chunk 6": 0.9 * slow}
    best, seconds = pick(times, chunk=6, cold=100.0)
    assert best == Parallel("vmap", 6) and seconds["loop"] == pytest.approx(slow)


def test_the_loop_may_win_and_a_candidate_far_behind_ends_the_search() -> None:
    best, seconds = pick({"loop": 1.0, "vmap chunk 4": 4.0})
    assert best == LOOP and len(seconds) == 2


def test_running_out_of_memory_ends_the_search() -> None:
    best, seconds = pick({"loop": 3.0, "vmap chunk 4": 1.0, "vmap chunk 8": None})
    assert best == Parallel("vmap", 4) and list(seconds) == ["loop", "vmap chunk 4"]


def test_the_loop_is_what_remains_when_nothing_fits() -> None:
    assert pick({"loop": None}) == (LOOP, {})


def test_a_given_chunk_is_held_against_the_loop() -> None:
    assert pick({"loop": 2.0, "vmap chunk 6": 0.5}, chunk=6)[0] == Parallel("vmap", 6)


def test_whoever_waits_is_told_which_candidate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    meters: list[Any] = []

    class Told:
        def __init__(self, doing: str, total: int) -> None:
            self.total = total
            meters.append(self)

        def reach(self, done: int, doing: str) -> None:
            self.done, self.doing = done, doing

        def close(self) -> None:
            self.total = 0

    class Asking(Timed):
        def meta_grad(self, params: Any, sample: Any, parallel: Parallel) -> None:
            (meter,) = meters
            assert str(parallel) in meter.doing and meter.total == 5
            tried.append((str(parallel), meter.done))
            super().meta_grad(params, sample, parallel)

    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(room, "Meter", Told)
    algo = Asking({"loop": 1.0, "vmap chunk 4": 4.0})
    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: algo.now))
    fastest(algo, {}, None, candidates(32, None, CPU), CPU)  # type: ignore[arg-type]
    assert list(dict.fromkeys(tried)) == [("loop", 0), ("vmap chunk 4", 1)]
    assert meters[0].total == 0  # closed


def test_candidates_go_from_least_memory_to_most() -> None:
    chunks = [c.chunk for c in candidates(32, None, CPU)]
    assert candidates(32, None, CPU)[0] == LOOP and chunks == [1, 4, 8, 16, 32]
    assert [c.chunk for c in candidates(5, None, CPU)] == [1, 4, 5]
    assert [c.chunk for c in candidates(100, None, CPU)] == [1, 4, 8, 16, 32, 100]


def test_an_accelerator_tries_large_chunks_only() -> None:
    assert [c.chunk for c in candidates(32, None, torch.device("cuda"))] == [1, 8, 32]
    assert [c.chunk for c in candidates(32, 4, torch.device("cuda"))] == [1, 4]


def test_what_is_compiled_is_unrolled_into_few_chunks() -> None:
    assert [c.chunk for c in candidates(32, None, CPU, unrolled=True)] == [8, 16, 32]
    assert [c.chunk for c in candidates(32, 2, CPU, unrolled=True)] == [2]  # as told
    assert [c.mode for c in candidates(1, None, CPU, unrolled=True)] == ["vmap"]
    with pytest.raises(UserError, match=r"parallel=loop with compile=true .* Take parallel=vmap or auto"):
        named("loop", None, 32, unrolled=True)


def test_halving_ends_at_the_loop_and_then_there_is_nothing_smaller() -> None:
    seen: list[str] = []
    parallel: Parallel | None = Parallel("vmap", 13)
    while parallel is not None:
        seen.append(str(parallel))
        parallel = halved(parallel)
    assert seen == ["vmap chunk 13", "vmap chunk 6", "vmap chunk 3", "vmap chunk 1", "loop"]


def test_a_mapping_set_by_hand() -> None:
    assert named("loop", 8, 32) == LOOP
    assert named("vmap", None, 32) == Parallel("vmap", 32)
    assert named("vmap", 8, 32) == Parallel("vmap", 8)
    assert named("vmap", 99, 32) == Parallel("vmap", 32)
