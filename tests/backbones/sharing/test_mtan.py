from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from metarun.maths.net import Net
from metarun.types import Batch, Params

BACKBONES = ["conv4", "lenet", "mlp", "resnet12"]


def masks(params: Params, bias: float) -> Params:
    """All masks the same everywhere: the sigmoid of a number."""
    last = re.compile(r"trunk\.own\.\d\.\d\.2\.(weight|bias)")  # the norm before the sigmoid
    told = {"weight": 0.0, "bias": bias}
    return {n: torch.full_like(p, told[found[1]]) if (found := last.fullmatch(n)) else p for n, p in params.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_open_masks_it_is_hard_sharing_and_with_closed_ones_the_input_is_lost(
    backbone: str, shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net, plain, x = shared_net("mtan", backbone), shared_net("none", backbone), batch(backbone).x[0]
    for each in (net, plain):
        each.module.eval()
    params = start(net)
    named = {"conv4": "blocks.", "mlp": "layers."}.get(backbone, "stages.")
    trunk = {
        name.replace("stages.", named).replace("rest.", ""): p
        for name, p in params.items()
        if name.startswith(("trunk.stages.", "trunk.rest."))
    }
    opened, closed = (net.seen(masks(params, bias), x) for bias in (50.0, -50.0))
    for head in range(2):
        assert torch.allclose(opened[:, head], plain.seen(trunk, x), atol=1e-9)
    assert torch.allclose(closed, closed[:1].expand_as(closed), atol=1e-9)


def test_masks_of_later_stages_depend_on_what_was_let_through_before(
    shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net, x = shared_net("mtan"), batch().x[0]
    params = start(net)
    other = {n: 2 * p if n.startswith("trunk.carry.") else p for n, p in params.items()}
    assert not torch.allclose(net.seen(params, x), net.seen(other, x))
