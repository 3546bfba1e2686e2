from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.engine.mapping import Parallel


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_gradient_is_that_of_ordinary_supervised_training_on_all_classes(
    norm: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    transfer = case("transfer", norm)
    x, (y,) = transfer.sample.x[0], transfer.sample.y.values()
    leaves = {name: p.clone().requires_grad_() for name, p in transfer.params.items()}
    loss = F.cross_entropy(plain_logits(leaves, x, x), y[0])
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    found, metrics = transfer.algo.meta_grad(transfer.params, transfer.sample, Parallel("vmap", 1))
    assert close(found, slope, 1e-9)
    assert torch.allclose(metrics["loss"], loss.detach())


def test_there_is_one_head_of_all_training_classes(case: Callable[..., Any]) -> None:
    transfer = case("transfer")
    assert {name: head.size for name, head in transfer.sampler.heads.items()} == {"all": 12}
    assert transfer.params["head.weight"].shape == (12, 4)
