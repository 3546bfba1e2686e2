from __future__ import annotations

from collections.abc import Callable

import torch

from metarun.maths.net import Net
from metarun.types import Batch, Params


def test_on_a_backbone_of_one_stage_it_is_customised_gate_control(
    shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    one_level, plain = (shared_net(name, small={"channels": [5]}, shared=2, own=2) for name in ("ple", "cgc"))
    x, params = batch().x[0], start(one_level)
    same = {_in_one_piece(name): p for name, p in params.items()}
    assert torch.allclose(one_level.seen(params, x), plain.seen(same, x), atol=1e-12)


def _in_one_piece(name: str) -> str:
    """An expert's name where it is no stage by itself but a whole trunk."""
    whole, _, entry = name.partition(".0.conv.") if ".0.conv." in name else name.partition(".0.norm.")
    return f"{whole}.blocks.0.{'conv' if '.conv.' in name else 'norm'}.{entry}" if entry else name


def test_each_level_mixes_what_the_level_before_gave(
    shared_net: Callable[..., Net], start: Callable[..., Params], batch: Callable[..., Batch]
) -> None:
    """Two layers of an MLP, an expert for each head and one for all, written out."""
    net, x = shared_net("ple", "mlp"), batch("mlp").x[0]
    params = {name.removeprefix("trunk."): p for name, p in start(net).items()}

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return (x @ params[f"{name}.linear.weight"].T + params[f"{name}.linear.bias"]).clamp(min=0)

    def mixed(gate: str, x: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
        weights = (x @ params[f"{gate}.linear.weight"].T).softmax(-1)
        return sum(weights[:, i : i + 1] * output for i, output in enumerate(outputs))  # type: ignore[return-value]

    first, second, common = (layer(f"levels.0.experts.{i}", x) for i in range(3))
    heads = [mixed(f"levels.0.gates.{h}", x, [own, common]) for h, own in enumerate((first, second))]
    of_all = layer("shared.0.0", mixed("levels.0.gates.2", x, [first, second, common]))
    for h, seen in enumerate(heads):
        expected = mixed(f"own.{h}.gate", seen, [layer(f"own.{h}.experts.0.0", seen), of_all])
        assert torch.allclose(net.seen(start(net), x)[:, h], expected, atol=1e-12)


def test_a_level_stands_for_each_stage_and_for_hidden_layers_behind_them(shared_net: Callable[..., Net]) -> None:
    assert len(shared_net("ple", "conv4").module.trunk.levels) == 1  # and the last one: of two stages
    assert len(shared_net("ple", "lenet").module.trunk.levels) == 2
