from __future__ import annotations

import math
from collections.abc import Callable
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


def test_a_regression_has_no_ways_and_no_fixed_tasks(configured: Configured) -> None:
    with pytest.raises(UserError, match=r"train\.ways=5: a regression has no classes"):
        configured("sinusoid").load(CPU).episodes("train", 5, 10, 10, "train")
    data = configured("sinusoid").load(CPU)
    assert (data.offers, data.metric) == (("episodes",), "mse")
    with pytest.raises(UserError, match=r"^algo\.trains_on=group: data=sinusoid offers episodes\. Take"):
        data.tasks("group", 4)


def test_a_task_has_points_to_learn_from_and_to_be_judged_by(configured: Configured) -> None:
    for shots, queries, wrong in ((0, 5, "test.shots=0"), (5, 0, "test.queries=0")):
        with pytest.raises(UserError, match=f"{wrong} must be at least 1"):
            configured("sinusoid").load(CPU).episodes("test", 1, shots, queries, "test")
