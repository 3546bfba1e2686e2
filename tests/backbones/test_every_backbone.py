"""Claims about each file of conf/backbone, whichever there are."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.construct import construct, target_of

BACKBONES = Path(__file__).parents[2] / "metarun" / "backbones"
CONF = Path(__file__).parents[2] / "conf" / "backbone"
YAMLS = sorted(path.stem for path in CONF.glob("*.yaml"))
Params = dict[str, Tensor]


def build(name: str, shape: tuple[int, ...]) -> nn.Module:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    if config["_target_"].endswith("TorchVision"):
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"torchvision does not load: {error}")
    torch.manual_seed(0)
    return construct(config, "backbone", shape=shape).eval()


def shape_for(name: str) -> tuple[int, ...]:
    """As small as its poolings allow, to keep the tests quick."""
    return {"vgg16": (3, 32, 32), "mlp": (1,)}.get(name, (1, 16, 16))


@pytest.mark.parametrize("name", YAMLS)
def test_keys_are_the_constructor_arguments_and_the_first_line_describes(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert (BACKBONES / f"{config._target_.split('.')[-2]}.py").is_file()
    arguments = list(inspect.signature(target_of(config, "backbone")).parameters)
    assert arguments[0] == "shape"
    assert set(config) == {"_target_", *arguments[1:]}
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def test_every_module_has_a_yaml() -> None:
    targets = {OmegaConf.load(CONF / f"{name}.yaml")._target_.split(".")[-2] for name in YAMLS}
    assert targets == {path.stem for path in BACKBONES.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", YAMLS)
def test_features_is_the_output_width_and_nothing_but_parameters_is_stored(name: str) -> None:
    trunk = build(name, shape_for(name))
    with torch.no_grad():
        assert trunk(torch.rand(2, *shape_for(name))).shape == (2, trunk.features)
    assert not list(trunk.buffers())


@pytest.mark.parametrize("name", YAMLS)
def test_vmap_equals_loop(name: str) -> None:
    """Second-order meta-gradient of one MAML step, per task; for the largest (ResNet-12, VGG) the prediction alone."""
    trunk = build(name, shape_for(name))
    large = sum(p.numel() for p in trunk.parameters()) > 12_000_000
    kind = torch.float32 if large else torch.float64
    trunk = trunk.to(kind)
    params = {n: p.detach() for n, p in trunk.named_parameters()}
    x = torch.rand(2, 3, *shape_for(name), dtype=kind)

    def loss(p: Params, rows: Tensor) -> Tensor:
        return functional_call(trunk, p, (rows,)).sin().square().mean()

    def after_one_step(p: Params, rows: Tensor) -> Tensor:
        slope = grad(loss)(p, rows)
        return loss({n: p[n] - 0.01 * slope[n] for n in p}, rows.flip(-1))

    def answer(rows: Tensor) -> Params:
        if large:
            return {"features": functional_call(trunk, params, (rows,)).detach()}
        return grad(after_one_step)(params, rows)

    mapped = vmap(answer, randomness="different")(x)
    for task in range(2):
        for n, expected in answer(x[task]).items():
            torch.testing.assert_close(mapped[n][task], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=n: n + m)
