"""Two gloo ranks learn what one process does, by every algorithm and balance, with tasks or rows shared unevenly.

One launch does it all: this file is what each rank runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from metarun.backbones.cnn import CNN
from metarun.construct import construct, target_of
from metarun.data.draw.source import split_classes
from metarun.data.images.collection import Collection
from metarun.engine.compile import Traced
from metarun.engine.mapping import Parallel
from metarun.engine.ranks import ALONE, Team, join
from metarun.loop import Loop, Plan
from metarun.maths.net import Net
from metarun.state import State
from metarun.types import Batch, Head, Heads, Params, learned

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
BALANCES, ALGOS = (sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in ("balance", "algo"))
if find_spec("torchjd") is None:
    BALANCES.remove("torchjd")


def needs(balance: str) -> str:
    """What a balance of conf/ asks for."""
    return target_of(yaml.safe_load((CONF / "balance" / f"{balance}.yaml").read_text()), "balance").needs


CASES = [
    *(f"algo {name}" for name in ALGOS),
    *(f"rows {balance}" for balance in BALANCES),
    *(f"tasks {balance}" for balance in BALANCES if needs(balance) != "features"),  # which they have not in common
    *("tasks famo traced", "rows pcgrad traced", "tasks famo traced plainly"),
    *("alone equal", "alone equal traced"),
    *(["tasks famo compiled"] if shutil.which("g++") else []),
]
PLAIN: dict[str, Any] = {"stride": 1, "pool": 1, "norm": "none", "dropout": 0.0, "flatten": True, "hidden": []}


@dataclass(frozen=True)
class Rows:
    """Seven rows a step that all heads share, and of which some lack a target; ranks share the rows."""

    from_disk: bool = False

    @property
    def heads(self) -> Heads:
        return {"parity": Head("class", 2, gaps=True), "ink": Head("value", 1, gaps=True)}

    def draw(self, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"lots": torch.rand(7, 1, 2, 4, generator=generator)}

    def gather(self, draw: dict[str, Tensor]) -> Batch:
        x = draw["lots"]
        ink = x.mean((1, 2, 3))[:, None]
        parity = (x[:, 0, 0, 0] > 0.5).long()
        parity, ink = parity.masked_fill(x[:, 0, 0, 1] > 0.6, -100), ink.masked_fill(x[:, :, 0, 2] > 0.6, torch.nan)
        return Batch(x[None], {"parity": parity[None], "ink": ink[None]})


class Plainly(Team):
    """Ranks that sum by the collective which tracing drops without a word."""

    def _reduced(self, tree: Any, count: int | None) -> Any:
        import torch.distributed as dist
        from torch.utils._pytree import tree_map

        def summed(t: Tensor) -> Tensor:
            t = t.detach() * (1 if count is None else count)
            dist.all_reduce(t)
            return t

        assert count is None
        return tree_map(summed, tree)


def learner(shared: str, method: str) -> tuple[Any, Any]:
    """An algorithm of conf/ or one with a balance of conf/, and what it trains on: three tasks or seven rows a step."""
    images = torch.randint(0, 256, (36, 1, 2, 4), generator=torch.Generator().manual_seed(0)).byte()
    groups = tuple(f"g{c // 3}" for c in range(9))
    named = tuple(f"{group}/{c}" for c, group in enumerate(groups))
    classes = Collection.of(images, torch.arange(9).repeat_interleave(4), named, groups)
    data = split_classes("random", classes, {"train": range(9)}, {"train": False}, {})
    balance = "equal"
    section: dict[str, Any] = {"_target_": "metarun.algos.mtl.MultiTask", "inner_lr": 1.0, "test_adapt": "head"}
    section["single_task"] = shared == "alone"
    if shared == "algo":
        section = yaml.safe_load((CONF / "algo" / f"{method}.yaml").read_text())["algo"]
        (by, *_) = [section.pop("trains_on")] if isinstance(section["trains_on"], str) else section.pop("trains_on")
        sampler: Any = data.episodes("train", 3, 1, 2) if by == "episodes" else data.tasks(by, 3)
    else:
        balance, sampler = method, data.tasks("group", 5) if shared == "tasks" else Rows()
    net = Net.build(partial(CNN, (1, 2, 4), channels=[5], **PLAIN), sampler.heads, "batch")
    weighs = "balance" in signature(target_of(section, "algo")).parameters
    chosen = yaml.safe_load((CONF / "balance" / f"{balance}.yaml").read_text())
    given: dict[str, Any] = {"balance": construct(chosen, "balance")} if weighs else {}
    given |= {"source": None} if "source" in section else {}
    section.pop("source", None)  # the run's, which hands over a network
    return construct(section, "algo", net=net, **given), sampler


def trained(name: str, team: Team) -> Params:
    """θ after four steps of the case, on all ranks of a team."""
    shared, method, *run = name.split()
    algo, sampler = learner(shared, method)
    params = algo.init(torch.Generator().manual_seed(0))
    if run:
        algo = Traced(algo, compiles=True, records=False)
    if run == ["traced", "plainly"]:
        team = Plainly(team.rank, team.size, team.store)
    rate = 0.02 if shared == "algo" else 0.2  # deep ones make much of rounding
    loop = Loop(
        algo=lambda _: algo,
        sampler=sampler,
        validate=lambda _: {"loss": {"mean": 0.0}},
        score=lambda _: 0.0,
        factor=lambda *_: 1.0,
        choose=lambda *_: Parallel("vmap", 2),
        stop=lambda: None,
        plan=Plan(0, 4, 3, rate, float("inf"), None, None, 99, 99, None),
        tracker=SimpleNamespace(step=lambda _: 0, log=lambda *_: 0, say=lambda _: 0),  # type: ignore[arg-type]
        folder=Path(os.devnull),
        device=torch.device("cpu"),
        team=team,
    )
    state = State(params, torch.optim.SGD([*learned(params).values()], lr=rate))
    compiler = torch.compile
    if "traced" in run:  # alone: what tracing drops is gone before the compiler sees it
        torch.compile = lambda program, dynamic: program  # type: ignore[assignment]
    samples = loop.samples(0)
    window: Any = SimpleNamespace(metrics=[], tasks=0)
    try:
        for _ in range(4):
            loop.step(state, samples, window)
    finally:
        torch.compile = compiler
    return {**state.params, "losses": torch.stack([metrics["loss"] for metrics in window.metrics])}


def main(folder: str) -> None:
    """Every case, on this rank of two; what went wrong in one is its answer."""
    team = join()
    for name in CASES:
        try:
            answer: Any = trained(name, team)
        except Exception as error:
            answer = str(error)
        torch.save(answer, Path(folder) / f"{name} {team.rank}.pt")
    team.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks came to."""
    found = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*torchrun, __file__, str(found)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return found


def difference(name: str, folder: Path) -> float:
    """How far two ranks and one process come to lie from each other."""
    ranks = [torch.load(folder / f"{name} {rank}.pt") for rank in (0, 1)]
    assert not isinstance(ranks[0], str), ranks[0]
    alone = trained(" ".join(name.split()[:2]), ALONE)
    assert all(one.keys() == alone.keys() for one in ranks)
    return max(float((one[key] - p).abs().max()) for one in ranks for key, p in alone.items())


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("plainly")])
def test_two_ranks_come_to_the_parameters_memory_and_losses_of_one(name: str, folder: Path) -> None:
    assert difference(name, folder) < 1e-5


def test_a_plain_collective_would_be_dropped_by_tracing(folder: Path) -> None:
    """So the tests above can fail."""
    assert not difference("tasks famo traced plainly", folder) < 1e-3


if __name__ == "__main__":
    main(*sys.argv[1:])
