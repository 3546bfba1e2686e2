from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metarun.build import build
from metarun.engine.mapping import Parallel
from metarun.engine.prefetch import ahead
from metarun.evaluate import episodes_hash, evaluate
from metarun.loop import Loop, Plan, State
from metarun.optim import schedules
from metarun.run import Order, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda:0")
STEPS = 5
PLAN = Plan(
    seed=0,
    steps=STEPS,
    tasks=4,
    lr=0.01,
    max_seconds=float("inf"),
    clip_value=1.0,
    clip_norm=1.0,
    log_every=99,
    val_every=99,
    patience=None,
)
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


@pytest.fixture
def sync_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


class Strict:
    """A tracker that forbids synchronising between the first step, which warms up, and the last."""

    def step(self, step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step < STEPS else "default")

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def say(self, text: str) -> None: ...


@pytest.mark.parametrize("parallel", [Parallel("loop", 1), Parallel("vmap", 2)], ids=str)
def test_nothing_waits_for_the_device_between_logs(
    algo_name: str,
    parallel: Parallel,
    order: Callable[..., Order],
    images: tuple[str, ...],
    tmp_path: Path,
    sync_mode: None,
) -> None:
    check_strictly(order(f"algo={algo_name}", "device=cuda", *images, *SMALL), parallel, tmp_path)


@pytest.mark.parametrize("algo", ["maml", "reptile"])
def test_nothing_waits_for_the_device_on_sinusoids(
    algo: str, order: Callable[..., Order], tmp_path: Path, sync_mode: None
) -> None:
    check_strictly(order(f"algo={algo}", "device=cuda", "data=sinusoid", *SMALL), Parallel("vmap", 4), tmp_path)


def check_strictly(ordered: Order, parallel: Parallel, folder: Path) -> None:
    """Trains for some steps in the mode in which CUDA raises where the host would wait."""
    parts = build(ordered.config, None)
    params = to(CUDA, parts.algo.init(torch.Generator().manual_seed(0)))
    state = State(params, torch.optim.Adam(list(params.values()), lr=0.01), parallel)
    loop = Loop(
        algo=parts.algo,
        sampler=parts.sampler,
        validate=lambda state: {"accuracy": {"mean": 0.5, "ci95": 0.0, "tasks": 1}},
        factor=schedules.constant,
        choose=lambda state, sample: parallel,
        stop=lambda: None,
        plan=PLAN,
        tracker=Strict(),
        folder=folder,
        device=CUDA,
    )
    loop.run(state)
    assert state.step == STEPS


def test_the_same_seed_tests_on_the_same_episodes_on_every_device(
    order: Callable[..., Order], images: tuple[str, ...]
) -> None:
    hashes, supports = [], []
    for device in ("cpu", "cuda"):
        parts = build(order(f"device={device}", *images, *SMALL).config, None)
        draw = parts.test_sampler.draw(6, torch.Generator().manual_seed(2))
        hashes.append(episodes_hash(parts.test_sampler, draw))
        supports.append(parts.test_sampler.gather(draw).support.x)
    assert hashes[0] == hashes[1]
    assert str(supports[1].device) == "cuda:0" and supports[0].equal(supports[1].cpu())


def test_scores_on_cuda_are_those_on_the_cpu(algo_name: str, case: Callable[..., Any]) -> None:
    found = case(algo_name)
    draw = found.test.draw(5, torch.Generator().manual_seed(0))

    class There:
        heads, fingerprint = found.test.heads, found.test.fingerprint

        def gather(self, draw: Any) -> Any:
            return to(CUDA, found.test.gather(draw))

    here = evaluate(found.algo, found.params, found.test, draw, 3, Parallel("vmap", 5))
    there = evaluate(found.algo, to(CUDA, found.params), There(), draw, 3, Parallel("vmap", 5))  # type: ignore[arg-type]
    for one, other in zip(here["by_step"], there["by_step"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_samples_made_ahead_are_those_made_on_demand(order: Callable[..., Order], images: tuple[str, ...]) -> None:
    """Bit for bit, with the device kept busy on the common stream and the memory of used samples handed out anew."""
    made = []
    for resident in ("true", "false"):
        parts = build(order("device=cuda", *images, *SMALL, f"data.resident={resident}").config, None)
        sampler = parts.sampler
        assert sampler.from_disk == (resident == "false")

        def sample(step: int, sampler: Any = sampler) -> Any:
            return sampler.gather(sampler.draw(8, torch.Generator(CUDA).manual_seed(step)))

        busy, sums = torch.ones(2000, 2000, device=CUDA), []
        for episode in ahead(sample, range(30), CUDA) if sampler.from_disk else map(sample, range(30)):
            busy = busy @ busy / 2000
            sums.append([leaf.double().sum() for leaf in tree_leaves(episode)])
            del episode
        made.append(sums)
    assert made[0] == made[1]


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_run_on_cuda_says_so(resident: str, order: Callable[..., Order], images: tuple[str, ...]) -> None:
    record = run(order("device=cuda", *images, *SMALL, f"data.resident={resident}"))
    assert record["status"] == "completed" and record["device"] == "cuda:0"
    assert 0 < record["cost"]["peak_memory_mb"] < 1000
