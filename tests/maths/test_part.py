from __future__ import annotations

import torch
from torch import nn

from metarun.maths.part import Part

PAIR = Part.build("pair", lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)))


def test_a_part_is_a_pure_function_of_its_own_entries() -> None:
    params = PAIR.init(torch.Generator().manual_seed(0))
    assert set(params) == {"pair.0.weight", "pair.0.bias", "pair.2.weight", "pair.2.bias"}
    x = torch.rand(5, 4)
    hidden = (x @ params["pair.0.weight"].T + params["pair.0.bias"]).clamp(min=0)
    expected = hidden @ params["pair.2.weight"].T + params["pair.2.bias"]
    assert torch.allclose(PAIR({**params, "trunk.0.weight": torch.ones(1)}, x), expected, atol=1e-6)


def test_a_seed_decides_a_part_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (PAIR.init(torch.Generator().manual_seed(seed))["pair.0.weight"] for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)
    assert torch.get_rng_state().equal(state)


def test_a_part_has_a_gradient_for_each_task_beneath_vmap() -> None:
    params = PAIR.init(torch.Generator().manual_seed(0))
    x = torch.rand(3, 5, 4)
    slope = torch.vmap(torch.func.grad(lambda p, x: PAIR(p, x).sum()), in_dims=(None, 0))(params, x)
    assert torch.allclose(slope["pair.2.bias"], torch.full((3, 1), 5.0))
