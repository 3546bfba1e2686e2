from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from metarun.backbones.resnet12 import DropBlock, ResNet12
from metarun.errors import UserError


def resnet(shape: tuple[int, ...] = (3, 16, 16), **changes: Any) -> ResNet12:
    torch.manual_seed(0)
    options = {"channels": [2, 3, 4, 5], "norm": "batch", "leak": 0.1, "dropblock": 0.0, "dropblock_size": 5}
    return ResNet12(shape, **{**options, **changes})


def test_the_wide_network_has_12_424_320_parameters() -> None:
    """Per stage a -> b: 9ab + 9bb + 9bb + ab weights and 4 x 2b for norms; 64-160-320-640 is MetaOptNet's."""
    trunk = resnet(channels=[64, 160, 320, 640])
    assert sum(p.numel() for p in trunk.parameters()) == 12_424_320


def test_twelve_convolutions_lie_on_the_longest_path() -> None:
    body = [n for n, m in resnet().named_modules() if isinstance(m, nn.Conv2d) and ".body." in n]
    assert len(body) == 12


def test_each_stage_halves_the_image() -> None:
    sides = []
    trunk = resnet((1, 28, 28))
    for stage in trunk.stages:
        stage.register_forward_hook(lambda _m, _x, y: sides.append(y.shape[-1]))
    assert trunk(torch.rand(2, 1, 28, 28)).shape == (2, 5)
    assert sides == [14, 7, 3, 1]


def test_a_stage_without_its_body_is_its_shortcut() -> None:
    trunk = resnet((2, 16, 16), channels=[2], norm="none")
    stage, x = trunk.stages[0], torch.randn(2, 2, 16, 16)
    nn.init.zeros_(stage.body.conv2.weight)
    expected = torch.nn.functional.max_pool2d(torch.nn.functional.leaky_relu(stage.shortcut.conv(x), 0.1), 2)
    torch.testing.assert_close(trunk(x), expected.mean((2, 3)))


def test_second_order_meta_gradients_agree_between_vmap_and_loop() -> None:
    trunk = resnet().double()
    params = {n: p.detach() for n, p in trunk.named_parameters()}
    x = torch.rand(2, 4, 3, 16, 16, dtype=torch.float64)

    def loss(p: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return functional_call(trunk, p, (rows,)).sin().square().mean()

    def after_one_step(p: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        slope = grad(loss)(p, rows)
        return loss({n: p[n] - 0.1 * slope[n] for n in p}, rows.flip(-1))

    mapped = vmap(lambda rows: grad(after_one_step)(params, rows))(x)
    for task in range(2):
        for name, expected in grad(after_one_step)(params, x[task]).items():
            torch.testing.assert_close(mapped[name][task], expected)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_dropblock_keeps_the_expected_value_everywhere(size: int) -> None:
    torch.manual_seed(0)
    x = 1 + torch.rand(1, 1, 6, 5)
    mean = DropBlock(0.2, size)(x.expand(40_000, 1, 6, 5)).mean(0, keepdim=True)
    torch.testing.assert_close(mean, x, rtol=0.05, atol=0)


def test_dropblock_drops_about_its_rate_in_whole_squares() -> None:
    torch.manual_seed(0)
    dropped = DropBlock(0.1, 3)(torch.ones(2_000, 1, 12, 12)) == 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.015)
    whole = -nn.functional.max_pool2d(-dropped.float(), 3, stride=1)
    squares = nn.functional.max_pool2d(nn.functional.pad(whole, (2,) * 4), 3, stride=1)
    assert torch.equal(squares.bool(), dropped)  # an opening by the square changes nothing


def test_dropblock_is_off_in_eval_and_at_rate_zero() -> None:
    x = torch.rand(2, 3, 6, 6)
    assert torch.equal(DropBlock(0.5, 3).eval()(x), x)
    assert torch.equal(DropBlock(0.0, 3)(x), x)


def test_dropblock_leaves_rows_independent() -> None:
    x = torch.rand(2, 3, 6, 6)
    drop = DropBlock(0.3, 3)
    torch.manual_seed(0)
    first = drop(x)[0]
    torch.manual_seed(0)
    assert torch.equal(drop(torch.stack([x[0], 9 * x[1]]))[0], first)


def test_dropblock_draws_afresh_for_every_task_under_vmap() -> None:
    trunk, x = resnet(dropblock=0.3), torch.rand(1, 4, 3, 16, 16).expand(2, -1, -1, -1, -1)
    params = {n: p.detach() for n, p in trunk.named_parameters()}
    first, second = vmap(lambda t: functional_call(trunk, params, (t,)), randomness="different")(x)
    assert not torch.equal(first, second)


def test_a_gradient_of_a_gradient_passes_through_dropblock() -> None:
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    drop = DropBlock(0.3, 3)

    def call(v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return drop(v).sin()

    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((3, 12, 12), {}, "16x16 pixels; the data gives 12x12"),
        ((1,), {}, "backbone=mlp"),
        ((3, 16, 16), {"channels": []}, "has no stage"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(shape: tuple[int, ...], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        resnet(shape, **changes)
    assert "\n" not in str(caught.value)
