from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metarun.maths.net import Net
from metarun.types import Batch


def test_hard_sharing_is_what_there_is_without_an_architecture(
    shared_net: Callable[..., Net], batch: Callable[..., Batch]
) -> None:
    """Of the same seed."""
    x = batch().x[0].float()
    nets = [shared_net(sharing) for sharing in ("hard", "none")]
    given: list[Any] = [net(net.init(torch.Generator().manual_seed(0)), x) for net in nets]
    assert all(torch.allclose(given[0][name], given[1][name], atol=1e-6) for name in given[1])
