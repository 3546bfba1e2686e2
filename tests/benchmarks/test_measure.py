from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import alone, in_turns, slope
from benchmarks.workloads import WORKLOADS, chosen, job
from metarun.errors import UserError

CPU = torch.device("cpu")


def test_systems_are_timed_in_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    pieces = {name: lambda steps, name=name: calls.append(name) for name in "ABC"}
    taken = in_turns(pieces, repeats=3, target=0.0, device=CPU)
    assert calls[-9:] == list("ABC" * 3)
    assert {name: len(seconds) for name, seconds in taken.items()} == dict.fromkeys("ABC", 3)


def test_a_piece_makes_as_many_steps_as_fill_its_time_and_is_told_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def clocked(work: Callable[[], None], device: torch.device) -> float:
        work()
        return 0.01 * made[-1]

    monkeypatch.setattr(measure, "seconds", clocked)
    assert in_turns({"piece": made.append}, repeats=2, target=0.05, device=CPU) == {"piece": [0.01, 0.01]}
    assert made == [1, 1, 5, 5]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_is_the_power_by_which_cost_grows(power: float) -> None:
    sizes = [1, 2, 5, 10]
    assert slope(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_alone_is_another_process() -> None:
    assert alone(os.getpid) != os.getpid()


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_composes(name: str) -> None:
    assert job(*WORKLOADS[name].overrides).train.tasks >= 4


def test_an_unknown_workload_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"W10 is unknown\. Did you mean W1"):
        chosen("W1,W10", WORKLOADS, "--workloads")
