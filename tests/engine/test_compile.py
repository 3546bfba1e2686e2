from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from metarun.algos.maml import MAML
from metarun.engine.compile import Traced, check_compiler, traced
from metarun.engine.device import seed_draws
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.types import Episode, Metrics, Params


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
    generator, program = torch.Generator().manual_seed(0), Traced(found.algo, compiles=True, records=False)
    for tasks, parallel in shapes:
        sample = found.sampler.gather(found.sampler.draw(tasks, generator))
        slope, metrics = program.meta_grad(found.params, sample, parallel)
        expected, scores = found.algo.meta_grad(found.params, sample, parallel)
        assert slope.keys() == expected.keys() and metrics.keys() == scores.keys()
        for key, value in expected.items():
            assert torch.allclose(slope[key], value, rtol=1e-9, atol=1e-12), key
    return len(program.programs)


def test_a_program_draws_anew_and_by_its_seed(
    conv_net: Callable[..., Net], episode: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: the first call, which traces, the next, and a program of its own find the same of one seed."""
    monkeypatch.setattr(torch, "compile", lambda program, dynamic: program)
    algo = MAML(conv_net("batch", "batch", 0.5), 0.1, 1, False, "mean", True, False)
    params, sample = {n: p.double() for n, p in algo.init(torch.Generator().manual_seed(0)).items()}, episode()

    def losses(*seeds: int) -> list[float]:
        program, found = Traced(algo, compiles=True, records=False), []
        for seed in seeds:
            seed_draws(torch.device("cpu"), seed)
            found.append(program.meta_grad(params, sample, Parallel("vmap", 2))[1]["loss"].item())
        return found

    first, again, other = losses(1, 1, 2)
    assert first == again != other
    assert losses(2, 1) == [other, first]


def test_before_it_compiles_it_says_that_this_takes_time(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(program: Any, dynamic: bool) -> Any:
        told.append(capsys.readouterr().out)
        return program

    told: list[str] = []
    monkeypatch.setattr(torch, "compile", late)
    found = case("maml")
    program = Traced(found.algo, compiles=True, records=False)
    for _ in range(2):
        program.meta_grad(found.params, found.sample, Parallel("vmap", 3))
    assert told == ["compiling the meta-step (vmap chunk 3): its first run takes a minute or more\n"]
    assert capsys.readouterr().out == ""


@dataclass(frozen=True)
class Asking:
    """An algorithm that asks for the value of a tensor."""

    def meta_grad(self, params: Params, sample: Any, parallel: Any) -> tuple[Params, Metrics]:
        return params, {"loss": params["w"].sum() * (2 if params["w"].sum() > 0 else 1)}


def test_what_cannot_be_traced_runs_as_it_is_unless_it_was_to_be_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    params: Params = {"w": torch.ones(2)}
    found = Traced(Asking(), compiles=False, records=True)
    assert found.meta_grad(params, (), Parallel("vmap", 1))[1]["loss"] == 4
    assert "not recorded as a CUDA graph: It appears that you're trying to get value" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"compile=true: It appears .*\. Take compile=false\."):
        Traced(Asking(), compiles=True, records=False).meta_grad(params, (), Parallel("vmap", 1))


@pytest.mark.parametrize(
    ("compile", "parallel", "device", "ranks", "expected"),
    [
        ("auto", "auto", "cpu", 1, None),
        (False, "auto", "cuda", 1, None),
        ("auto", "loop", "cuda", 1, None),
        ("auto", "auto", "cuda", 2, None),
        ("auto", "vmap", "cuda", 1, (False, True)),
        (True, "auto", "cuda", 1, (True, True)),
        (True, "auto", "cuda", 2, (True, False)),
        (True, "auto", "cpu", 1, (True, False)),
    ],
)
def test_a_meta_step_is_recorded_on_one_gpu_and_compiled_on_demand(
    compile: bool | str, parallel: str, device: str, ranks: int, expected: tuple[bool, bool] | None
) -> None:
    algo = Asking()
    found = traced(algo, compile, parallel, torch.device(device), ranks)
    assert found is algo if expected is None else found == Traced(algo, *expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_compiling_changes_a_meta_gradient_by_rounding_only(linear_net: Net, points: Episode) -> None:
    algo = MAML(linear_net, 0.1, 1, first_order=False, inner_loss="mean", adapt_norm=True, remat=False)
    params = linear_net.init(torch.Generator().manual_seed(0))
    params = {name: p.double() for name, p in params.items()}
    slope, _ = Traced(algo, compiles=True, records=False).meta_grad(params, points, Parallel("vmap", 3))
    expected, _ = algo.meta_grad(params, points, Parallel("vmap", 3))
    assert all(torch.allclose(slope[name], value, rtol=1e-9) for name, value in expected.items())


def test_without_a_compiler_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
