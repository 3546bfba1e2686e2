from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.optim.ema import EMA

THETA = torch.tensor([1.0, -2.0], dtype=torch.float64)
LR, DECAY = 0.1, 0.8
SGD = torch.optim.SGD
ADAM = partial(torch.optim.Adam, betas=(0.8, 0.99))


def pull(w: Tensor, asked: list[Tensor] | None = None) -> Callable[[], Tensor]:
    """The closure of ½‖w‖², which notes where it was asked."""

    def closure() -> Tensor:
        if asked is not None:
            asked.append(w.clone())
        w.grad = w.clone()
        return 0.5 * w @ w

    return closure


def run(optimizer: Any, w: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.step(pull(w))


def test_what_stands_between_steps_is_the_decaying_mean_of_where_the_base_was() -> None:
    """SGD on ½‖w‖² is at (1 − α)ⁱ θ after i steps."""
    w = THETA.clone()
    optimizer = EMA([w], LR, DECAY, SGD)
    for t in range(1, 6):
        optimizer.step(pull(w))
        weights = torch.tensor([DECAY ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        path = torch.stack([(1 - LR) ** i * THETA for i in range(1, t + 1)])
        assert torch.allclose(w, weights @ path / weights.sum(), atol=1e-14)


def test_slopes_are_taken_where_the_base_is_and_not_at_the_mean() -> None:
    w, plain, asked, seen = THETA.clone(), THETA.clone(), [], []
    averaged, base = EMA([w], LR, DECAY, ADAM), ADAM([plain], lr=LR)
    for _ in range(5):
        assert averaged.step(pull(w, asked)) == base.step(pull(plain, seen))
    assert all(one.equal(other) for one, other in zip(asked, seen, strict=True)) and not w.equal(plain)


def test_without_decay_it_is_the_base_optimiser_bit_for_bit() -> None:
    w, plain = THETA.clone(), THETA.clone()
    run(EMA([w], LR, 0.0, ADAM), w, 5)
    run(ADAM([plain], lr=LR), plain, 5)
    assert w.equal(plain)


@pytest.mark.parametrize("base", [SGD, ADAM])
def test_it_goes_on_from_its_state_bit_for_bit(base: Any) -> None:
    whole, parts = THETA.clone(), THETA.clone()
    run(EMA([whole], LR, DECAY, base), whole, 7)
    first = EMA([parts], LR, DECAY, base)
    run(first, parts, 3)
    file = io.BytesIO()
    torch.save({"params": parts, "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = saved["params"].clone()
    second = EMA([again], LR, DECAY, base)
    second.load_state_dict(saved["optimizer"])
    run(second, again, 4)
    assert again.equal(whole)


def test_the_rate_is_that_of_the_base() -> None:
    w = THETA.clone()
    optimizer = EMA([w], LR, DECAY, SGD)
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, w, 3)
    assert w.equal(THETA)


def test_it_moves_parameters_of_the_meta_device() -> None:
    """Where a fetch from the device, or a tensor on the CPU, would be an error."""
    w = torch.ones(3, device="meta")

    def closure() -> Tensor:
        w.grad = torch.ones_like(w)
        return w.sum()

    assert EMA([w], LR, DECAY, SGD).step(closure).is_meta
