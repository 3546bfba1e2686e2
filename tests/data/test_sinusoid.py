from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.errors import UserError
from metarun.types import Head

Configured = Callable[..., Any]
CPU = torch.device("cpu")


def test_targets_are_the_sine_of_the_drawn_amplitude_and_phase(configured: Configured) -> None:
    data = configured("sinusoid").load(CPU)
    assert data.shape == (1,)
    sampler = data.episodes("train", 1, 5, 10)
    assert sampler.heads == {"y": Head("value", 1)}
    draw = sampler.draw(7, torch.Generator().manual_seed(0))
    support, query = sampler.gather(draw)
    assert support.x.shape == support.y["y"].shape == (7, 5, 1)
    assert query.x.shape == query.y["y"].shape == (7, 10, 1)
    x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y["y"], query.y["y"]], 1)
    for t in range(7):
        for row in range(15):
            phase, amplitude = float(draw["phase"][t]), float(draw["amplitude"][t])
            assert float(y[t, row]) == pytest.approx(amplitude * math.sin(float(x[t, row]) - phase), abs=1e-5)


@pytest.mark.parametrize("phase", [math.pi, 2 * math.pi])
def test_tasks_fill_the_paper_s_ranges(configured: Configured, phase: float) -> None:
    sampler = configured("sinusoid", phase=phase).load(CPU).episodes("train", 1, 5, 5)
    draw = sampler.draw(20000, torch.Generator().manual_seed(0))
    for values, low, high in (
        (draw["amplitude"], 0.1, 5.0),
        (draw["phase"], 0.0, phase),
        (draw["x"], -5.0, 5.0),
    ):
        width = high - low
        assert low <= float(values.min()) < low + width / 500
        assert high - width / 500 < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=width / 100)


def test_the_same_seed_draws_the_same_tasks(configured: Configured) -> None:
    sampler = configured("sinusoid").load(CPU).episodes("test", 1, 5, 5)
    state = torch.get_rng_state()
    one, other = (sampler.draw(3, torch.Generator().manual_seed(2)) for _ in range(2))
    assert all(one[key].equal(other[key]) for key in one)
    assert torch.get_rng_state().equal(state)


def test_a_regression_has_no_ways(configured: Configured) -> None:
    with pytest.raises(UserError, match=r"train\.ways=5: a regression has no classes"):
        configured("sinusoid").load(CPU).episodes("train", 5, 10, 10, "train")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fixed_tasks_are_drawn_once_by_their_seed(configured: Configured) -> None:
    data, again, other = (configured("sinusoid", tasks_seed=seed).load(CPU) for seed in (0, 0, 1))
    assert (data.offers, data.metric) == (("episodes", "group", "rows"), "mse")
    assert data.amplitude.equal(again.amplitude) and not data.amplitude.equal(other.amplitude)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert float(data.amplitude.min()) >= 0.1 and float(data.own_phase.max()) <= math.pi
    with pytest.raises(
        UserError, match=r"^algo\.trains_on=folds: data=sinusoid offers episodes, group and rows\. Take"
    ):
        data.tasks("folds", 4)


@pytest.mark.parametrize("count", [2, 4, 9])
def test_a_fixed_task_has_a_head_and_points_of_its_own(configured: Configured, count: int) -> None:
    data = configured("sinusoid", tasks=4).load(CPU)
    drawn = data.tasks("group", 6)
    assert drawn.heads == {f"task{i}": Head("value", 1, gaps=True, alone=True) for i in range(4)}
    draw = drawn.draw(count, seeded())
    batch, tasks = drawn.gather(draw), min(count, 4)
    assert batch.x.shape == (tasks, 6, 1) and draw["task"].equal(draw["task"].unique())
    for t, task in enumerate(draw["task"].tolist()):
        for name, y in batch.y.items():
            if name != f"task{task}":
                assert y[t].isnan().all()
                continue
            expected = data.amplitude[task] * torch.sin(batch.x[t] - data.own_phase[task])
            torch.testing.assert_close(y[t], expected)


def test_points_of_all_fixed_tasks_are_rows_of_one_head(configured: Configured) -> None:
    data = configured("sinusoid", tasks=4).load(CPU)
    drawn = data.tasks("rows", 500)
    assert drawn.heads == {"y": Head("value", 1)} == data.episodes("test", 1, 5, 5).heads
    draw = drawn.draw(2, seeded())
    batch = drawn.gather(draw)
    assert batch.x.shape == batch.y["y"].shape == (1, 1000, 1)
    assert torch.bincount(draw["task"]).min() > 150
    task = draw["task"]
    expected = data.amplitude[task] * torch.sin(batch.x[0, :, 0] - data.own_phase[task])
    torch.testing.assert_close(batch.y["y"][0, :, 0], expected)
    part = drawn.gather({name: lots[300:] for name, lots in draw.items()})  # another rank's share
    assert part.y["y"].equal(batch.y["y"][:, 300:])


@pytest.mark.parametrize("algo", ["mtl", "transfer"])
def test_learners_on_fixed_tasks_are_tested_on_fresh_ones(metarun: Callable[..., Any], algo: str) -> None:
    """With few steps the trunk is hardly trained, and fitting still lowers the error on ten points."""
    words = ("data.tasks=5", "train.steps=150", "val.every=150", "val.tasks=10", "test.tasks=20", "parallel=vmap")
    outcome = metarun(f"algo={algo}", "data=sinusoid", *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    steps = json.loads(Path("run/result.json").read_text())["test"]["by_step"]
    assert [row["step"] for row in steps] == [*range(11)]
    assert steps[-1]["mse"]["mean"] < steps[0]["mse"]["mean"]


def test_a_task_has_points_to_learn_from_and_to_be_judged_by(configured: Configured) -> None:
    for shots, queries, wrong in ((0, 5, "test.shots=0"), (5, 0, "test.queries=0")):
        with pytest.raises(UserError, match=f"{wrong} must be at least 1"):
            configured("sinusoid").load(CPU).episodes("test", 1, shots, queries, "test")
