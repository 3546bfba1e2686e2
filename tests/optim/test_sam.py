from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.engine.mapping import Parallel
from metarun.loop import Loop, Plan
from metarun.optim.sam import SAM
from metarun.state import State
from metarun.tracking import checkpoint
from metarun.types import Optimizer, Params, learned

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
THETA = torch.tensor([1.0, -2.0], dtype=torch.float64)
LR, RHO = 0.1, 0.3
SGD = torch.optim.SGD
ADAM = partial(torch.optim.Adam, betas=(0.8, 0.99))
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def bowl(*leaves: Tensor) -> Callable[[], Tensor]:
    """The closure of ½ wᵀHw, w being all leaves as one vector."""

    def closure() -> Tensor:
        w = torch.cat(leaves).requires_grad_()
        loss = 0.5 * w @ H @ w
        (slope,) = torch.autograd.grad(loss, w)
        for leaf, part in zip(leaves, slope.split([len(leaf) for leaf in leaves])):
            leaf.grad = part
        return loss.detach()

    return torch.enable_grad()(closure)


def test_the_step_takes_the_slope_at_the_worst_point_nearby() -> None:
    """θ − α H (θ + ρ Hθ / ‖Hθ‖)."""
    w = THETA.clone()
    loss = SAM([w], LR, RHO, SGD).step(bowl(w))
    slope = H @ THETA
    assert torch.allclose(w, THETA - LR * H @ (THETA + RHO * slope / slope.norm()), atol=1e-14)
    assert loss == 0.5 * THETA @ H @ THETA  # that of θ itself


def test_the_norm_is_over_all_parameters_together() -> None:
    whole, parts = THETA.clone(), [THETA[:1].clone(), THETA[1:].clone()]
    SAM([whole], LR, RHO, SGD).step(bowl(whole))
    SAM(parts, LR, RHO, SGD).step(bowl(*parts))
    assert torch.allclose(torch.cat(parts), whole, atol=1e-14)


def test_a_slope_of_zero_leaves_everything_where_it_is() -> None:
    w = torch.zeros(2, dtype=torch.float64)
    SAM([w], LR, 1e300, SGD).step(bowl(w))
    assert w.equal(torch.zeros(2, dtype=torch.float64))


def test_the_base_steps_from_the_very_parameters_that_were_there() -> None:
    """To the last bit, where adding ε and subtracting it again would round."""
    w = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    before, seen = w.clone(), []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            seen.append(w.clone())

    def closure() -> Tensor:
        seen.append(w.clone())
        w.grad = w.sin()
        return w.sum()

    SAM([w], LR, 1e4, Watching).step(closure)
    assert seen[0].equal(before) and seen[2].equal(before) and not seen[1].equal(before)
    away = 1e4 * before.sin() / before.sin().norm()
    assert not (before + away - away).equal(before)


def test_what_has_no_slope_stays() -> None:
    w, idle = THETA.clone(), torch.ones(3)
    SAM([w, idle], LR, RHO, SGD).step(bowl(w))
    assert idle.equal(torch.ones(3)) and not w.equal(THETA)


# In the loop


class Noise:
    from_disk = False

    def draw(self, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"a": torch.randn(tasks, 3, generator=generator)}

    def gather(self, draw: dict[str, Tensor]) -> Tensor:
        return draw["a"]


@dataclass
class Pull:
    """Pulls w to what was drawn, through dropout, by a slope that is not linear; keeps where it was asked last."""

    asked: list[Tensor] = field(default_factory=list)

    def meta_grad(self, params: Params, sample: Tensor, parallel: Parallel) -> tuple[Params, dict[str, Tensor]]:
        assert torch.is_grad_enabled()
        self.asked.append(params["w"].clone())
        kept = torch.rand(sample.shape) > 0.3
        error = (params["w"] - sample).exp() * kept
        return {"w": error.mean(0), "memory.seen": params["w"].clone()}, {"loss": error.mean()}


PLAN = Plan(
    seed=0,
    steps=6,
    tasks=4,
    lr=0.1,
    max_seconds=float("inf"),
    clip_value=None,
    clip_norm=None,
    log_every=99,
    val_every=2,
    patience=None,
)


def started(optimizer: Callable[..., Optimizer]) -> State:
    params = {"w": torch.ones(3), "memory.seen": torch.zeros(3)}
    return State(params, optimizer([*learned(params).values()], lr=0.1))


def trained(folder: Path, state: State, algo: Any = None, **plan: Any) -> State:
    algo = algo or Pull()
    tracker = SimpleNamespace(step=lambda _: None, log=lambda *_: None, say=lambda _: None)
    folder.mkdir(exist_ok=True)
    loop = Loop(
        algo=lambda _: algo,
        sampler=Noise(),
        validate=lambda state: {"loss": {"mean": 0.0}},
        score=lambda scores: 0.0,
        factor=lambda step, steps: 1.0,
        choose=lambda *_: Parallel("vmap", 4),
        stop=lambda: None,
        plan=Plan(**{**vars(PLAN), **plan}),
        tracker=tracker,
        folder=folder,
        device=torch.device("cpu"),
    )
    loop.run(state)
    return state


@pytest.mark.parametrize("base", [SGD, MOMENTUM, ADAM])
def test_without_a_radius_it_is_the_base_optimiser_bit_for_bit(base: Any, tmp_path: Path) -> None:
    """Also with dropout: both slopes of a step are of one function."""
    plain = trained(tmp_path / "a", started(base))
    sharp = trained(tmp_path / "b", started(partial(SAM, rho=0.0, base=base)))
    assert sharp.params["w"].equal(plain.params["w"]) and not plain.params["w"].equal(torch.ones(3))
    assert not trained(tmp_path / "c", started(partial(SAM, rho=0.5, base=base))).params["w"].equal(plain.params["w"])


def test_a_step_asks_for_two_slopes_a_radius_apart(tmp_path: Path) -> None:
    algo = Pull()
    trained(tmp_path, started(partial(SAM, rho=0.5, base=SGD)), algo)
    assert len(algo.asked) == 2 * PLAN.steps
    for at, nearby in zip(algo.asked[::2], algo.asked[1::2]):
        assert (nearby - at).norm() == pytest.approx(0.5, rel=1e-5)


def test_memory_is_that_of_the_parameters_themselves_not_of_the_point_nearby(tmp_path: Path) -> None:
    algo = Pull()
    state = trained(tmp_path, started(partial(SAM, rho=0.5, base=SGD)), algo)
    assert state.params["memory.seen"].equal(algo.asked[-2]) and not algo.asked[-1].equal(algo.asked[-2])


def test_the_loops_learning_rate_is_that_of_the_base(tmp_path: Path) -> None:
    """Of plain SGD at rate 0 nothing moves."""
    state = trained(tmp_path, started(partial(SAM, rho=0.5, base=SGD)), lr=0.0)
    assert state.params["w"].equal(torch.ones(3)) and state.optimizer.param_groups[0]["lr"] == 0.0


def test_both_slopes_are_clipped(tmp_path: Path) -> None:
    """A step of plain SGD is then at most rate times bound long, and the radius stays what it was."""
    algo = Pull()
    trained(tmp_path, started(partial(SAM, rho=0.5, base=SGD)), algo, clip_norm=1e-3)
    moved = [(b - a).norm().item() for a, b in zip(algo.asked[::2], algo.asked[2::2])]
    assert moved == pytest.approx([0.1 * 1e-3] * len(moved), rel=1e-2)
    assert all((b - a).norm() == pytest.approx(0.5, rel=1e-3) for a, b in zip(algo.asked[::2], algo.asked[1::2]))


@pytest.mark.parametrize("base", [MOMENTUM, ADAM])
@pytest.mark.parametrize("at", [2, 4])
def test_it_resumes_bit_for_bit(base: Any, at: int, tmp_path: Path) -> None:
    optimizer = partial(SAM, rho=0.5, base=base)
    whole = trained(tmp_path / "whole", started(optimizer))
    trained(tmp_path / "parts", started(optimizer), steps=at)
    state = started(optimizer)
    state.restore(checkpoint.load(tmp_path / "parts" / "last.pt"))
    assert state.step == at
    trained(tmp_path / "parts", state)
    assert all(p.equal(whole.params[name]) for name, p in state.params.items())


def test_it_moves_parameters_of_the_meta_device() -> None:
    """Where a fetch from the device, or a tensor on the CPU, would be an error."""
    w = torch.ones(3, device="meta")

    def closure() -> Tensor:
        w.grad = torch.ones_like(w)
        return w.sum()

    assert SAM([w], LR, RHO, MOMENTUM).step(closure).is_meta
