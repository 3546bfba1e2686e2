"""Two gloo ranks weigh several losses as one process does, with tasks or rows shared out unevenly between them.

One launch does it all: this file is what each rank runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from metarun.algos.mtl import MultiTask
from metarun.algos.transfer import Transfer
from metarun.backbones.mlp import MLP
from metarun.construct import construct
from metarun.data.draw.source import split_classes
from metarun.data.images.collection import Collection
from metarun.engine.compile import Compiled
from metarun.engine.mapping import Parallel
from metarun.engine.ranks import ALONE, Team, join
from metarun.loop import Loop, Plan, State
from metarun.maths.net import Net
from metarun.types import Batch, Head, Heads, Params, learned

ROOT = Path(__file__).parents[2]
BALANCES = sorted(path.stem for path in (ROOT / "conf" / "balance").glob("*.yaml"))
CASES = [
    *(f"{shared} {balance}" for shared in ("tasks", "rows") for balance in BALANCES),
    *("rows transfer", "data transfer", "tasks famo traced", "rows pcgrad traced", "tasks famo traced plainly"),
    *(["tasks famo compiled"] if shutil.which("g++") else []),
]


@dataclass(frozen=True)
class Rows:
    """Seven rows a step that all heads share, and of which some lack a target; ranks share the rows."""

    gaps: bool
    from_disk: bool = False

    @property
    def heads(self) -> Heads:
        return {"parity": Head("class", 2, gaps=self.gaps), "ink": Head("value", 1, gaps=self.gaps)}

    def draw(self, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"lots": torch.rand(7, 1, 2, 4, generator=generator)}

    def gather(self, draw: dict[str, Tensor]) -> Batch:
        x = draw["lots"]
        ink = x.mean((1, 2, 3))[:, None]
        parity = (x[:, 0, 0, 0] > 0.5).long()
        if self.gaps:
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


def trained(name: str, team: Team) -> Params:
    """θ after four steps of the case, on all ranks of a team."""
    shared, method, *run = name.split()
    images = torch.randint(0, 256, (36, 1, 2, 4), generator=torch.Generator().manual_seed(0)).byte()
    groups = tuple(f"g{c // 3}" for c in range(9))
    named = tuple(f"{group}/{c}" for c, group in enumerate(groups))
    classes = Collection.of(images, torch.arange(9).repeat_interleave(4), named, groups)
    data = split_classes("random", classes, {"train": range(9)}, {"train": False}, {})
    ways = {"tasks": partial(data.tasks, "group", 5), "data": partial(data.tasks, "rows", 7)}
    sampler: Any = ways[shared]() if shared in ways else Rows(gaps=method != "transfer")
    net = Net.build(partial(MLP, (1, 2, 4), hidden=[5], norm="none"), sampler.heads, "batch")
    if method == "transfer":
        algo: Any = Transfer(net, 1.0, "head")
    else:
        section = yaml.safe_load((ROOT / "conf" / "balance" / f"{method}.yaml").read_text())
        algo = MultiTask(net, construct(section, "balance"), 1.0, "head")
    params = algo.init(torch.Generator().manual_seed(0))
    if run:
        algo = Compiled(algo)
    if run == ["traced", "plainly"]:
        team = Plainly(team.rank, team.size, team.store)
    loop = Loop(
        algo=lambda _: algo,
        sampler=sampler,
        validate=lambda _: {"loss": {"mean": 0.0}},
        score=lambda _: 0.0,
        factor=lambda *_: 1.0,
        choose=lambda *_: Parallel("vmap", 2),
        stop=lambda: None,
        plan=Plan(0, 4, 3, 0.2, float("inf"), None, None, 99, 99, None),
        tracker=SimpleNamespace(step=lambda _: 0, log=lambda *_: 0, say=lambda _: 0),  # type: ignore[arg-type]
        folder=Path(os.devnull),
        device=torch.device("cpu"),
        team=team,
    )
    state = State(params, torch.optim.SGD([*learned(params).values()], lr=0.2))
    compiler = torch.compile
    if "traced" in run:  # alone: what tracing drops is gone before the compiler sees it
        torch.compile = lambda program, dynamic: program  # type: ignore[assignment]
    samples = loop._samples(0)
    window: Any = SimpleNamespace(metrics=[], tasks=0)
    try:
        for _ in range(4):
            loop._step(state, samples, window)
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


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith(("plainly", "data transfer"))])
def test_two_ranks_come_to_the_parameters_memory_and_losses_of_one(name: str, folder: Path) -> None:
    assert difference(name, folder) < 1e-5


def test_two_ranks_share_the_rows_of_a_data_set(folder: Path) -> None:
    assert difference("data transfer", folder) < 1e-5


def test_a_plain_collective_would_be_dropped_by_tracing(folder: Path) -> None:
    """So the tests above can fail."""
    assert not difference("tasks famo traced plainly", folder) < 1e-3


if __name__ == "__main__":
    main(*sys.argv[1:])
