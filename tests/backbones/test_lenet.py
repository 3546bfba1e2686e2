from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.backbones.lenet import LeNet
from metarun.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_multimnist_s_network_has_its_known_sizes() -> None:
    """28 → 24 → 12 → 8 → 4, so that 20 · 4 · 4 = 320 values meet 50 units."""
    trunk = LeNet((1, 28, 28), [10, 20], 50)
    assert count(trunk) == (25 * 10 + 10) + (25 * 10 * 20 + 20) + (320 * 50 + 50)
    assert trunk.features == 50


def test_it_is_convolution_pooling_and_relu_written_out() -> None:
    trunk, x = LeNet((3, 28, 32), [4, 5], 6), torch.randn(2, 3, 28, 32)
    p, expected = dict(trunk.named_parameters()), x
    for stage in range(2):
        expected = F.conv2d(expected, p[f"stages.{stage}.conv.weight"], p[f"stages.{stage}.conv.bias"])
        expected = F.max_pool2d(expected, 2).clamp(min=0)
    assert torch.equal(trunk.stages(x), expected)
    expected = (expected.flatten(1) @ p["hidden.weight"].T + p["hidden.bias"]).clamp(min=0)
    torch.testing.assert_close(trunk(x), expected)


def test_the_smallest_image_is_of_16_pixels() -> None:
    assert LeNet((1, 16, 16), [10, 20], 50)(torch.rand(2, 1, 16, 16)).shape == (2, 50)
    with pytest.raises(UserError, match=r"^backbone=lenet leaves nothing of 15x40 images: each of its 2 stages cuts"):
        LeNet((1, 15, 40), [10, 20], 50)


def test_vectors_are_refused() -> None:
    with pytest.raises(UserError, match="take backbone=mlp"):
        LeNet((7,), [10, 20], 50)
