from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.backbones.sharing.dselectk import Choice, selected, smooth_step
from metarun.maths.net import Net
from metarun.types import Params, UserError


def choice(z: Tensor, w: Tensor, gamma: float = 1.0) -> Choice:
    made = Choice(*z.shape, gamma).double()
    made.z.data, made.w.data = z.double(), w.double()
    return made


@pytest.mark.parametrize("made", [False, True])
def test_weights_of_experts_sum_to_1_and_once_choices_are_made_at_most_k_are_not_0(made: bool) -> None:
    dice = torch.Generator().manual_seed(0)
    for _ in range(20):
        z, w = torch.randn(2, 3, generator=dice), torch.randn(2, generator=dice)
        weights = choice(z.sign() if made else 0.1 * z, w)().detach()
        assert weights.shape == (8,) and float(weights.sum()) == pytest.approx(1.0)
        assert (weights >= 0).all() and int((weights > 0).sum()) in ((1, 2) if made else (8,))


def test_bits_name_an_expert() -> None:
    z = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert selected(z, 1.0).tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]


def test_the_step_is_flat_outside_and_smooth_at_its_bends() -> None:
    t = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    found = smooth_step(t, 2.0)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert torch.autograd.grad(found.sum(), t)[0].tolist() == pytest.approx([0.0, 0.0, 0.75, 0.0, 0.0])


def test_the_penalty_is_the_entropy_of_the_choices_and_falls_as_they_are_made(
    shared_net: Callable[..., Net], start: Callable[..., Params]
) -> None:
    net = shared_net("dselectk", "mlp", experts=4, chosen=2, entropy=0.1)
    params = start(net)

    def penalty(z: float) -> Tensor:
        return net.penalty({n: torch.full_like(p, z) if n.endswith(".z") else p for n, p in params.items()})

    assert float(penalty(0.0)) == pytest.approx(0.1 * 2 * 2 * math.log(4))
    assert penalty(0.0) > penalty(0.2) > penalty(0.4) > penalty(0.5) == 0


def test_a_choice_that_is_made_has_slopes_that_are_numbers(
    shared_net: Callable[..., Net], start: Callable[..., Params]
) -> None:
    net = shared_net("dselectk", "mlp")
    params = {n: (3 * p.sign()).requires_grad_() if n.endswith(".z") else p for n, p in start(net).items()}
    names = [name for name in params if name.endswith(".z")]
    for slope in torch.autograd.grad(net.penalty(params), [params[name] for name in names]):
        assert not slope.any()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"experts": 6}, r"^sharing.experts=6 is no power of 2. Give 4 or 8.$"),
        ({"chosen": 5}, r"^sharing.chosen=5 of sharing.experts=4 cannot be. Lower it.$"),
    ],
)
def test_what_cannot_be_chosen_is_refused(keys: dict[str, int], told: str, shared_net: Callable[..., Net]) -> None:
    with pytest.raises(UserError, match=told):
        shared_net("dselectk", **keys)
