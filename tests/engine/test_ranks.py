"""Two processes under torchrun do what one does: gloo on the CPU, sinusoid regression, three tasks for two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from metarun.cli import CONF
from metarun.cli.compose import hydra_arguments
from metarun.engine.device import pick
from metarun.engine.ranks import ALONE, Team
from metarun.errors import UserError
from metarun.tracking import checkpoint

MORTAL = """
import atexit
import os
from dataclasses import dataclass

from metarun.algos.maml import MAML

calls = []
if os.environ["METARUN_FATE"] == "last":
    atexit.register(os.abort)


@dataclass(frozen=True)
class Mortal(MAML):
    def meta_grad(self, *args):
        step = len(calls) - 1  # the first two calls are a trial, as of every algorithm that is not metarun's own
        calls.append(1)
        if os.environ.get("RANK") == "1" and os.environ["METARUN_FATE"].startswith(f"{step} "):
            os.kill(os.getpid(), int(os.environ["METARUN_FATE"].split()[1]))
        return super().meta_grad(*args)
"""
KEYS = (
    *("algo=mortal", "algo.inner_lr=0.01", "data=sinusoid", "backbone.hidden=[8]", "device=cpu", "parallel=vmap"),
    *("optim=sgd", "optim.lr=0.05", "schedule=constant", "train.tasks=3", "train.log_every=5"),
    *("val.every=10", "val.tasks=5", "test.tasks=7", "test.adapt_steps=2"),
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


class Ended(NamedTuple):
    """How a command line ended, and in which run directory."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def params(self) -> dict[str, torch.Tensor]:
        return checkpoint.load(self.folder / "checkpoints" / "last.pt")["params"]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an algorithm lies of which one rank can be killed at a given step."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "conf" / "algo").mkdir(parents=True)
    shipped = (CONF / "algo" / "maml.yaml").read_text()
    (folder / "conf" / "algo" / "mortal.yaml").write_text(shipped.replace("metarun.algos.maml.MAML", "mortal.Mortal"))
    (folder / "mortal.py").write_text(MORTAL)
    return folder


def launch(place: Path, ranks: int, name: str, *overrides: str, fate: str = "never") -> Ended:
    """metarun in `ranks` processes: a new run, or the one of that name resumed.

    `fate` is a step of this session and the signal that comes to the second rank in it; or, with "last", the end of
    an interpreter is that of its process.
    """
    resumed = (place / name).exists()
    where = (f"resume={name}",) if resumed else (f"hydra.run.dir={name}", *KEYS)
    command = [sys.executable, *(TORCHRUN if ranks > 1 else ()), "-m", "metarun", *where, *overrides]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "METARUN_FATE": fate, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Ended(place / name, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def alone(place: Path) -> Ended:
    return launch(place, 1, "alone", "train.steps=20")


@pytest.fixture(scope="module")
def shared(place: Path) -> Ended:
    return launch(place, 2, "shared", "train.steps=20")


@pytest.fixture(scope="module")
def stopped(place: Path) -> Ended:
    return launch(place, 2, "broken", "train.steps=20", fate=f"7 {signal.SIGTERM:d}")


@pytest.fixture(scope="module")
def killed(place: Path, stopped: Ended) -> Ended:
    return launch(place, 2, stopped.folder.name, fate=f"6 {signal.SIGKILL:d}")


def same(one: Ended, other: Ended) -> None:
    """Whether two trainings came to the same end, up to the rounding of single precision."""
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert all(torch.allclose(p, other.params[name], rtol=0, atol=1e-6) for name, p in one.params.items())
    assert (one.result["steps"], one.result["status"]) == (20, "completed")
    for section in ("test", "val"):
        for part, value in one.result[section]["mse"].items():
            assert other.result[section]["mse"][part] == pytest.approx(value, abs=1e-5)
    assert len(one.result["test"]["by_step"]) == len(other.result["test"]["by_step"]) == 3


def test_two_ranks_train_and_test_as_one_does(alone: Ended, shared: Ended) -> None:
    """Three tasks, five and seven episodes are shared unevenly."""
    same(shared, alone)
    assert (alone.result["cost"]["ranks"], shared.result["cost"]["ranks"]) == (1, 2)


def test_the_first_rank_alone_speaks_and_writes(alone: Ended, shared: Ended) -> None:
    def files(run: Ended) -> list[str]:
        return sorted(f.name.partition(".tfevents")[0] for f in run.folder.rglob("*") if f.is_file())

    def steps(run: Ended) -> list[tuple[int, float | None]]:
        rows = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
        return [(row["step"], row.get("train/loss")) for row in rows]

    assert files(shared) == files(alone)
    assert [step for step, _ in steps(shared)] == [step for step, _ in steps(alone)]
    assert [loss for _, loss in steps(shared)] == pytest.approx([loss for _, loss in steps(alone)], abs=1e-5)
    assert shared.out.count("test tasks") == alone.out.count("test tasks") == 1
    assert "cpu, 2 ranks" in shared.out and "rank" not in alone.out


def test_a_signal_to_one_rank_stops_all_at_the_same_step(stopped: Ended) -> None:
    assert stopped.code != 0
    assert stopped.err.count("metarun: stopped by SIGTERM. To go on: metarun resume=broken") == 1
    assert (stopped.result["status"], stopped.result["steps"]) == ("interrupted", 7)
    assert checkpoint.load(stopped.folder / "checkpoints" / "last.pt")["step"] == 7


def test_a_killed_rank_ends_the_run_with_a_line_on_how_to_go_on(killed: Ended) -> None:
    assert killed.code != 0
    (line,) = (line for line in killed.err.splitlines() if line.startswith("metarun: another rank ended"))
    assert line.endswith("To go on: metarun resume=broken")
    assert (killed.result["status"], killed.result["steps"]) == ("failed", 12)
    for name in ("last.pt", "best.pt"):
        assert checkpoint.load(killed.folder / "checkpoints" / name)["step"] == 10


def test_one_process_goes_on_where_two_were_stopped_and_killed(place: Path, alone: Ended, killed: Ended) -> None:
    same(launch(place, 1, killed.folder.name), alone)


def test_two_ranks_go_on_where_one_ended(place: Path, alone: Ended) -> None:
    assert launch(place, 1, "half", "train.steps=10").code == 0
    same(launch(place, 2, "half", "train.steps=20"), alone)


LEAVING = """
import os
from pathlib import Path

import torch

from metarun.engine.ranks import join

team = join()
team.total({"slope": torch.ones(3)})
team.broadcast(lambda: "something")
team.leave()
names = [Path("/proc/self/task", task, "comm").read_text() for task in os.listdir("/proc/self/task")]
print("left:", [name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux tells them")
def test_no_thread_of_the_exchange_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *TORCHRUN, "leaving.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert "left: []" in done.stdout


def test_when_all_is_done_the_end_of_an_interpreter_can_spoil_nothing(place: Path) -> None:
    spoilt, shared = (launch(place, n, f"last{n}", "train.steps=2", fate="last") for n in (1, 2))
    assert (spoilt.code, shared.code) == (-signal.SIGABRT, 0)
    assert "test tasks" in shared.out and shared.result["status"] == "completed"


def test_a_mistake_is_told_once(place: Path) -> None:
    mistaken = launch(place, 2, "mistaken", "train.tasks=1")
    assert mistaken.code != 0 and mistaken.err.count("cannot be shared by 2 ranks") == 1
    assert "cannot be shared" in mistaken.result["error"]


def test_a_sweep_under_torchrun_is_refused() -> None:
    with pytest.raises(UserError, match="-m runs one job after the other"):
        hydra_arguments(["-m", "seed=0,1"], Team(0, 2))


@pytest.mark.parametrize("total", [8, 9, 15, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_task_is_had_by_one_rank(size: int, total: int) -> None:
    team = [Team(rank, size) for rank in range(size)]
    shares = [list(range(total))[one.share(total)] for one in team]
    assert [task for share in shares for task in share] == list(range(total))
    assert len(shares[0]) == max(map(len, shares)) <= min(map(len, shares)) + 1


@pytest.mark.parametrize("total", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_episode_is_dealt_in_order_and_all_ranks_have_as_many(size: int, total: int) -> None:
    dealt = [Team(rank, size).deal(total) for rank in range(size)]
    assert len({len(one) for one in dealt}) == 1
    assert torch.cat(dealt)[:total].tolist() == list(range(total))


def test_alone_nothing_is_exchanged_or_changed() -> None:
    tree = ({"w": torch.rand(3)}, {"loss": torch.rand(())})
    assert ALONE.mean(tree, 1) is tree is ALONE.total(tree) and ALONE.share(5) == slice(0, 5)
    assert ALONE.agreed(1.5, None) == (1.5, None) and ALONE.agreed(2.5, 15) == (2.5, 15)
    assert ALONE.gather(tree[0]["w"], 3) is tree[0]["w"] and ALONE.broadcast(lambda: 7) == 7


def test_each_rank_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert str(pick("auto", 0, None)) == "cuda:1" and chosen == [1]
    assert str(pick("cpu", 0, None)) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"there are 2 CUDA devices, counted from 0\. Each rank takes one"):
        pick("cuda", 0, None)
