from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metarun.algos.maml import MAML
from metarun.engine.compile import Compiled, check_compiler
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Episode


def test_tracing_changes_no_meta_gradient(
    algo_name: str, case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two samples, the second of which meets the program that was traced on the first."""
    monkeypatch.setattr(torch, "compile", lambda program, dynamic: program)
    found = case(algo_name, "batch")
    assert programs_of(found, [(2, Parallel("vmap", 2))] * 2) == 1


def test_every_mapping_and_every_number_of_tasks_has_a_program(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda program, dynamic: program)
    shapes = [(4, Parallel("vmap", 2)), (4, Parallel("vmap", 4)), (3, Parallel("vmap", 2))]
    assert programs_of(case("maml", "batch"), shapes * 2) == 3


def programs_of(found: Any, shapes: list[tuple[int, Parallel]]) -> int:
    """How many programs are made for tasks so many and so mapped, each of which gives what the algorithm gives."""
    generator, program = torch.Generator().manual_seed(0), Compiled(found.algo)
    for tasks, parallel in shapes:
        sample = found.sampler.gather(found.sampler.draw(tasks, generator))
        slope, metrics = program.meta_grad(found.params, sample, parallel)
        expected, scores = found.algo.meta_grad(found.params, sample, parallel)
        assert slope.keys() == expected.keys() and metrics.keys() == scores.keys()
        for key, value in expected.items():
            assert torch.allclose(slope[key], value, rtol=1e-9, atol=1e-12), key
    return len(program.programs)


def test_before_it_compiles_it_says_that_this_takes_time(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(program: Any, dynamic: bool) -> Any:
        told.append(capsys.readouterr().out)
        return program

    told: list[str] = []
    monkeypatch.setattr(torch, "compile", late)
    found = case("maml")
    program = Compiled(found.algo)
    for _ in range(2):
        program.meta_grad(found.params, found.sample, Parallel("vmap", 3))
    assert told == ["compiling the meta-step (vmap chunk 3): its first run takes a minute or more\n"]
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_compiling_changes_a_meta_gradient_by_rounding_only(linear_net: Net, points: Episode) -> None:
    algo = MAML(linear_net, 0.1, 1, first_order=False, inner_loss="mean", adapt_norm=True, remat=False)
    params = linear_net.init(torch.Generator().manual_seed(0))
    params = {name: p.double() for name, p in params.items()}
    slope, _ = Compiled(algo).meta_grad(params, points, Parallel("vmap", 3))
    expected, _ = algo.meta_grad(params, points, Parallel("vmap", 3))
    assert all(torch.allclose(slope[name], value, rtol=1e-9) for name, value in expected.items())


def test_without_a_compiler_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
