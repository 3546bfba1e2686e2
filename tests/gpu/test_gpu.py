from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metarun.algos.maml import MAML
from metarun.build import build
from metarun.engine.compile import Traced, recorded
from metarun.engine.device import seed_draws
from metarun.engine.mapping import Parallel
from metarun.engine.prefetch import prefetched
from metarun.evaluate import Exam, evaluate
from metarun.maths.net import Net
from metarun.run import fresh_state, loop_of, run
from metarun.settings import Job
from metarun.state import State
from metarun.types import Episode, Metrics, Params

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda:0")
STEPS = 5
SMALL = ("train.steps=4", "train.log_every=2", "val.every=2", "val.tasks=4", "test.tasks=6", "train.shots=2")
TINY = ("data.ways=2", "data.size=12", "data.colour=false", "backbone.channels=[4,4,4,4]")


def to(device: torch.device, tree: Any) -> Any:
    return tree_map(lambda t: t.to(device), tree)


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., Path]) -> tuple[str, ...]:
    return ("data=folder", f"data.root={write_images(tmp_path / 'images')}", *TINY)


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("parallel", [Parallel("loop", 1), Parallel("vmap", 4)], ids=str)
def test_the_meta_gradient_on_cuda_is_that_on_the_cpu(
    algo_name: str, parallel: Parallel, norm_stats: str, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case(algo_name, "batch", norm_stats)
    there, _ = found.algo.meta_grad(to(CUDA, found.params), to(CUDA, found.sample), parallel)
    here, _ = found.algo.meta_grad(found.params, found.sample, parallel)
    assert close(to(torch.device("cpu"), there), here, 1e-4)


def test_a_recorded_meta_gradient_is_that_of_the_algorithm(
    algo_name: str, case: Callable[..., Any], close: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two samples; what was found of the first still stands when the second has been replayed."""
    found, parallel, generator = case(algo_name, "batch"), Parallel("vmap", 3), torch.Generator().manual_seed(0)
    samples = [to(CUDA, found.sampler.gather(found.sampler.draw(3, generator))) for _ in range(2)]
    params, program = to(CUDA, found.params), Traced(found.algo, compiles=False, records=True)
    answers = [program.meta_grad(params, sample, parallel) for sample in samples]
    for sample, (slope, metrics) in zip(samples, answers, strict=True):
        expected, scores = found.algo.meta_grad(params, sample, parallel)
        assert close(slope, expected, 1e-4) and metrics.keys() == scores.keys()
    assert "not recorded" not in capsys.readouterr().out


def test_what_is_recorded_draws_anew_and_by_its_seed(
    conv_net: Callable[..., Net], episode: Callable[..., Episode]
) -> None:
    """With dropout: the first call, which records, the next, and a program of its own find the same of one seed."""
    algo = MAML(conv_net("batch", "batch", 0.5).to(CUDA), 0.1, 1, False, "mean", True, False)
    params = {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}
    params, sample = to(CUDA, params), to(CUDA, episode())

    def losses(*seeds: int) -> list[float]:
        program, found = Traced(algo, compiles=False, records=True), []
        for seed in seeds:
            seed_draws(CUDA, seed)
            found.append(program.meta_grad(params, sample, Parallel("vmap", 2))[1]["loss"].item())
        return found

    first, again, other = losses(1, 1, 2)
    assert first == again != other
    assert losses(2, 1) == [other, first]


def test_what_waits_for_the_device_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    def program(params: Params, sample: Any) -> tuple[Params, Metrics]:
        return params, {"loss": params["w"].nonzero().sum()}

    assert recorded(program, {"w": torch.ones(3, device=CUDA)}, ()) is program
    assert "the meta-step is not recorded as a CUDA graph" in capsys.readouterr().out
    assert 0 <= torch.rand(1, device=CUDA).item() < 1


@pytest.fixture
def sync_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


class Strict:
    """A tracker that forbids synchronising between the first step, which warms up, and the last."""

    def step(self, step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step < STEPS else "default")

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None: ...

    def say(self, text: str) -> None: ...


@pytest.mark.parametrize("parallel", [Parallel("loop", 1), Parallel("vmap", 2)], ids=str)
def test_nothing_waits_for_the_device_between_logs(
    algo_name: str,
    parallel: Parallel,
    job: Callable[..., Job],
    images: tuple[str, ...],
    tmp_path: Path,
    sync_mode: None,
) -> None:
    check_strictly(job(f"algo={algo_name}", "device=cuda", *images, *SMALL), parallel, tmp_path)


@pytest.mark.parametrize("algo", ["maml", "reptile"])
def test_nothing_waits_for_the_device_on_sinusoids(
    algo: str, job: Callable[..., Job], tmp_path: Path, sync_mode: None
) -> None:
    check_strictly(job(f"algo={algo}", "device=cuda", "data=sinusoid", *SMALL), Parallel("vmap", 4), tmp_path)


def test_the_same_seed_gives_the_same_numbers(
    job: Callable[..., Job], images: tuple[str, ...], tmp_path: Path, sync_mode: None
) -> None:
    made = job("device=cuda", *images, *SMALL)
    first, second = (check_strictly(made, Parallel("vmap", 2), tmp_path).params for _ in range(2))
    assert all(p.equal(second[name]) for name, p in first.items())


def check_strictly(made: Job, parallel: Parallel, folder: Path) -> State:
    """Trains for some steps in the mode in which CUDA raises where the host would wait."""
    parts = build(made)
    state = fresh_state(made, parts)
    state.parallel = parallel
    verdict = {name: {"mean": 0.5, "tasks": 4} for name in ("loss", parts.data.metric)}
    loop = loop_of(made, parts, Strict(), folder, lambda state: verdict)
    loop = replace(
        loop, plan=replace(loop.plan, steps=STEPS, clip_value=1.0, clip_norm=1.0, log_every=99, val_every=99)
    )
    loop.run(state)
    assert state.step == STEPS
    return state


def test_the_same_seed_tests_on_the_same_episodes_on_every_device(
    job: Callable[..., Job], images: tuple[str, ...]
) -> None:
    hashes, supports = [], []
    for device in ("cpu", "cuda"):
        exam = build(job(f"device={device}", *images, *SMALL)).test
        hashes.append(exam.fingerprint)
        supports.append(exam.sampler.gather(exam.draw).support.x)
    assert hashes[0] == hashes[1]
    assert str(supports[1].device) == "cuda:0"
    grey = [support.cpu().mul(255).round() for support in supports]  # a device divides by 255 in its own way
    assert grey[0].equal(grey[1])


def test_scores_on_cuda_are_those_on_the_cpu(algo_name: str, case: Callable[..., Any]) -> None:
    found = case(algo_name)
    draw = found.test.draw(5, torch.Generator().manual_seed(0))

    class There:
        heads, fingerprint = found.test.heads, found.test.fingerprint

        def gather(self, draw: Any) -> Any:
            return to(CUDA, found.test.gather(draw))

    exam = Exam(found.test, draw, 3, [1, 3])
    here = evaluate(found.tested, found.params, exam, Parallel("vmap", 5))
    found.tested.net.to(CUDA)
    there = evaluate(found.tested, to(CUDA, found.params), replace(exam, sampler=There()), Parallel("vmap", 5))
    for step, one in here.by_step.items():
        assert one["loss"] == pytest.approx(there.by_step[step]["loss"], abs=1e-4)


def test_samples_made_ahead_are_those_made_on_demand(job: Callable[..., Job], images: tuple[str, ...]) -> None:
    """Bit for bit, with the device kept busy on the common stream and the memory of used samples handed out anew."""
    made = []
    for resident in ("true", "false"):
        parts = build(job("device=cuda", *images, *SMALL, f"data.resident={resident}"))
        sampler = parts.sampler
        assert sampler.from_disk == (resident == "false")

        def sample(step: int, sampler: Any = sampler) -> Any:
            return sampler.gather(sampler.draw(8, torch.Generator(CUDA).manual_seed(step)))

        busy, sums = torch.ones(2000, 2000, device=CUDA), []
        for episode in prefetched(sample, range(30), CUDA) if sampler.from_disk else map(sample, range(30)):
            busy = busy @ busy / 2000
            sums.append([leaf.double().sum() for leaf in tree_leaves(episode)])
            del episode
        made.append(sums)
    assert made[0] == made[1]


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_run_on_cuda_says_so(resident: str, job: Callable[..., Job], images: tuple[str, ...]) -> None:
    record = run(job("device=cuda", *images, *SMALL, f"data.resident={resident}"))
    assert record["status"] == "completed" and record["device"] == "cuda:0"
    assert 0 < record["cost"]["peak_memory_mb"] < 1000
