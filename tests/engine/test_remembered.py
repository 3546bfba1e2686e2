from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun.engine import choice, remembered
from metarun.engine.choice import candidates
from metarun.engine.mapping import Parallel
from metarun.maths.net import Net

CPU = torch.device("cpu")
OFFERED = candidates(32, None, CPU)
LOOP, VMAP = Parallel("loop", 1), Parallel("vmap", 32)


@dataclass(frozen=True)
class Learner:
    net: Net
    rate: float
    decay: float | None
    steps: int


@dataclass(frozen=True)
class Other(Learner):
    pass


@dataclass
class Desk:
    """Where a mapping is asked for; what would be measured is said beforehand, and measurements are counted."""

    algo: Any
    params: Any
    sample: Any
    measured: int = 0

    def ask(self, found: Parallel = VMAP, anew: bool = False, **more: Any) -> tuple[Parallel, str]:
        def measure() -> tuple[Parallel, dict[str, float]]:
            self.measured += 1
            return found, {str(found): 0.1}

        key = remembered.situation(self.algo, self.params, self.sample, OFFERED, CPU, **more)
        return remembered.remembered(key, OFFERED, measure, anew)


@pytest.fixture
def desk(conv_net: Callable[..., Net], episode: Callable[..., Any]) -> Desk:
    net = conv_net()
    return Desk(Learner(net, 0.1, None, 2), net.init(torch.Generator().manual_seed(0)), episode())


def entry(cache: Path) -> Path:
    (found,) = (cache / "parallel").iterdir()
    return found


def test_what_was_measured_is_remembered_and_both_are_told(desk: Desk) -> None:
    assert desk.ask(VMAP) == (VMAP, "vmap chunk 32 is fastest here (vmap chunk 32 100 ms per meta-step)")
    best, told = desk.ask(LOOP)
    assert best == VMAP and "was fastest here when it was measured (parallel=measure" in told
    assert desk.measured == 1


def test_another_learning_rate_and_other_values_of_tensors_change_nothing(desk: Desk) -> None:
    desk.ask(VMAP)
    desk.algo = replace(desk.algo, rate=1, decay=0.5)
    desk.params = {name: p + 1 for name, p in desk.params.items()}
    assert desk.ask(LOOP)[0] == VMAP


@pytest.mark.parametrize(
    "change",
    [
        lambda desk: setattr(desk, "algo", Other(*vars(desk.algo).values())),
        lambda desk: setattr(desk, "algo", replace(desk.algo, steps=3)),
        lambda desk: setattr(desk, "algo", replace(desk.algo, net=replace(desk.algo.net, norm_stats="support"))),
        lambda desk: setattr(desk, "algo", replace(desk.algo, net=replace(desk.algo.net, half=True))),
        lambda desk: desk.params.pop("head.bias"),
        lambda desk: desk.params.update({"head.bias": desk.params["head.bias"].double()}),
        lambda desk: setattr(desk, "sample", desk.sample._replace(query=desk.sample.support)),
        lambda desk: desk.algo.net.module.trunk.blocks.append(torch.nn.Tanh()),
    ],
    ids=["class", "whole number", "norm_stats", "half", "shapes", "dtypes", "sample", "backbone"],
)
def test_what_speed_may_depend_on_is_measured_anew(desk: Desk, change: Callable[[Desk], Any]) -> None:
    desk.sample = desk.sample._replace(query=replace_rows(desk.sample.query, 4))
    desk.ask(VMAP)
    change(desk)
    assert desk.ask(LOOP)[0] == LOOP
    assert desk.ask(VMAP)[0] == LOOP  # and that is remembered beside the first


def replace_rows(batch: Any, rows: int) -> Any:
    return batch._replace(x=batch.x[:, :rows], y={name: y[:, :rows] for name, y in batch.y.items()})


def test_another_version_machine_or_setting_is_measured_anew(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.ask(ranks=1)
    desk.ask(ranks=2)
    monkeypatch.setattr(metarun, "__version__", "0.0")
    desk.ask(ranks=1)
    monkeypatch.setattr(remembered, "processor", lambda device: "another")
    desk.ask(ranks=1)
    assert desk.measured == 4


def test_measuring_anew_replaces_what_was_remembered(desk: Desk) -> None:
    desk.ask(VMAP)
    assert desk.ask(LOOP, anew=True)[0] == LOOP
    assert desk.ask(VMAP)[0] == LOOP and desk.measured == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("vmap chunk 32", "vmap chunk 31"),
        lambda text: json.dumps({**json.loads(text), "fastest": ["loop"]}),
        lambda text: json.dumps({**json.loads(text), "key": "of another program"}),
    ],
)
def test_a_damaged_or_foreign_entry_is_measured_anew_and_replaced(
    desk: Desk, own_cache: Path, damage: Callable[[str], str]
) -> None:
    desk.ask(VMAP)
    entry(own_cache).write_text(damage(entry(own_cache).read_text()))
    assert desk.ask(LOOP)[0] == LOOP
    assert desk.ask(VMAP)[0] == LOOP and desk.measured == 2


def test_a_cache_that_cannot_be_written_is_no_error(desk: Desk, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    assert desk.ask(VMAP)[0] == VMAP
    assert desk.ask(LOOP)[0] == LOOP


def test_of_two_that_measure_at_once_the_first_to_end_decides_for_both(desk: Desk) -> None:
    key = remembered.situation(desk.algo, desk.params, desk.sample, OFFERED, CPU)

    def while_another_ends() -> tuple[Parallel, dict[str, float]]:
        assert desk.ask(VMAP)[0] == VMAP
        return LOOP, {"loop": 0.1}

    assert remembered.remembered(key, OFFERED, while_another_ends, anew=False)[0] == VMAP
    assert desk.measured == 1


def test_what_fitted_nowhere_is_not_remembered(desk: Desk, own_cache: Path) -> None:
    key = remembered.situation(desk.algo, desk.params, desk.sample, OFFERED, CPU)
    assert remembered.remembered(key, OFFERED, lambda: (LOOP, {}), anew=False)[0] == LOOP
    assert not (own_cache / "parallel").exists()


def test_two_runs_of_one_seed_are_equal_to_the_bit_though_their_machine_would_measure_differently(
    metarun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("data=sinusoid", "backbone.hidden=[16]", "device=cpu", "train.steps=20", "train.tasks=8")
    few = ("val.every=10", "val.tasks=4", "test.tasks=4", "test.adapt_steps=1")
    ends = []
    for run, seconds in (("first", range(100, 0, -1)), ("second", range(1, 100))):  # for the last; then for the first
        clock = iter(seconds)
        monkeypatch.setattr(choice, "_seconds", lambda work, device, clock=clock: float(next(clock)))
        done = metarun(*small, *few, f"hydra.run.dir={run}")
        assert done.code == 0 and "fastest here" in done.out
        ends.append(torch.load(Path(run) / "checkpoints" / "last.pt", weights_only=True))
    first, second = ends
    assert first["parallel"] == second["parallel"] == ["vmap", 8]
    assert all(p.equal(second["params"][name]) for name, p in first["params"].items())
