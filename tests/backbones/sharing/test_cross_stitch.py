from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metarun.maths.net import Net
from metarun.types import Batch, Params

BACKBONES = ["conv4", "lenet", "mlp"]


def unstitched(name: str, backbone: str) -> str:
    """The name of a trunk's entry where nothing cuts it into parts."""
    stages = {"conv4": "blocks", "lenet": "stages", "mlp": "layers"}[backbone]
    part, _, rest = name.partition(".")
    if rest.startswith("hidden."):
        return rest
    last = {"conv4": "1.0.", "mlp": "1.0."}.get(backbone)
    return f"{stages}.{name.replace(last, '1.', 1)}" if last and name.startswith(last) else f"{stages}.{part}.{rest}"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_the_identity_for_alpha_it_is_a_trunk_for_each_head(
    backbone: str, shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net, plain, x = shared_net("cross_stitch", backbone), shared_net("none", backbone), batch(backbone).x[0]
    params = start(net)
    for name, p in params.items():
        if name.startswith("trunk.units."):
            params[name] = torch.eye(2, dtype=p.dtype)
        if name.startswith("trunk.own."):
            params[name] = torch.eye(2, dtype=p.dtype)[int(name.rpartition(".")[2])]
    for head in range(2):
        prefix = f"trunk.trunks.{head}."
        own = {n.removeprefix(prefix): p for n, p in params.items() if n.startswith(prefix)}
        trunk = {f"trunk.{unstitched(name, backbone)}": p for name, p in own.items()}
        assert torch.allclose(net.seen(params, x)[:, head], plain.seen(trunk, x), atol=1e-12)


def test_equal_rows_of_alpha_give_all_heads_the_same(
    shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    net = shared_net("cross_stitch", alpha=0.5)
    params = {**start(net), **{f"trunk.own.{h}": torch.tensor([0.3, 0.7]).double() for h in range(2)}}
    seen = net.seen(params, batch().x[0])
    assert torch.allclose(seen[:, 0], seen[:, 1], atol=1e-12) and seen.std() > 0


@pytest.mark.parametrize(("heads", "row"), [(1, [1.0]), (2, [0.9, 0.1]), (3, [0.9, 0.05, 0.05])])
def test_a_head_begins_with_most_of_its_own_trunk_and_rows_sum_to_1(
    heads: int, row: list[float], shared_net: Callable[..., Net]
) -> None:
    params = shared_net("cross_stitch", "lenet", heads=heads).init(torch.Generator().manual_seed(0))
    assert params["trunk.own.0"].tolist() == pytest.approx(row)
    for unit in range(2):  # behind each of two stages; the hidden layer is stitched by each head's own row
        assert params[f"trunk.units.{unit}"][0].tolist() == pytest.approx(row)
        assert params[f"trunk.units.{unit}"].sum(1).tolist() == pytest.approx([1.0] * heads)
