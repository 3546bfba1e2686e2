from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from metarun.backbones.torchvision import IMAGENET, HardSigmoid, TorchVision
from metarun.errors import UserError
from metarun.maths.norm import BatchNorm, FixedNorm


@pytest.fixture
def tv() -> Any:
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load: {error}")


def trunk(shape: tuple[int, ...] = (3, 32, 32), **changes: Any) -> TorchVision:
    torch.manual_seed(0)
    return TorchVision(shape, **{"name": "resnet18", "weights": None, "norm": "batch", **changes})


@pytest.fixture
def trained(tv: Any, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A ResNet-18 whose statistics and scales are not those of a fresh one, and the file it is saved in."""
    torch.manual_seed(1)
    model = tv.models.resnet18(num_classes=7)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (layer.bias, layer.running_mean):
                nn.init.normal_(values, std=0.1)
    torch.save(model.state_dict(), tmp_path / "resnet18.pt")
    return model, tmp_path / "resnet18.pt"


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(IMAGENET).T
    return (x - mean[:, None, None]) / std[:, None, None]


def test_torchvision_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, metarun.backbones.torchvision; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_torchvision_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"backbone.name=resnet18 needs torchvision.*install the build") as caught:
        trunk()
    assert "\n" not in str(caught.value)


def test_resnet18_has_torchvisions_parameters_less_the_output_layer(tv: Any) -> None:
    assert sum(p.numel() for p in trunk().parameters()) == 11_689_512 - (512 * 1000 + 1000)
    assert trunk().features == 512


@pytest.mark.parametrize(
    ("name", "side", "features"),
    [
        ("alexnet", 64, 4096),
        ("squeezenet1_0", 64, None),
        ("densenet121", 32, 1024),
        ("efficientnet_b0", 32, 1280),
        ("mobilenet_v3_small", 32, 1024),
        ("shufflenet_v2_x0_5", 32, 1024),
        ("mnasnet0_5", 32, 1280),
        ("regnet_y_400mf", 32, 440),
    ],
)
def test_every_family_maps_under_vmap_with_its_dropout_on(tv: Any, name: str, side: int, features: int | None) -> None:
    if features is None:
        with pytest.raises(UserError, match=f"backbone.name={name} has no linear output layer"):
            trunk((1, side, side), name=name)
        return
    net = trunk((1, side, side), name=name)
    params = {n: p.detach() for n, p in net.named_parameters()}
    x = torch.rand(2, 2, 1, side, side)
    y = vmap(lambda t: functional_call(net, params, (t,)), randomness="different")(x)
    assert y.shape == (2, 2, features)
    assert not [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_a_state_dict_file_gives_torchvisions_features_with_its_own_statistics(trained: Any) -> None:
    model, file = trained
    model.fc = nn.Identity()
    x = torch.rand(2, 3, 32, 32)
    expected = model.eval()(normalised(x))
    torch.testing.assert_close(trunk(weights=str(file), norm="fixed").eval()(x), expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_keeps_weight_and_bias_and_takes_the_batchs_statistics(trained: Any) -> None:
    model, file = trained
    model.fc = nn.Identity()
    x = torch.rand(4, 3, 32, 32)
    net = trunk(weights=str(file))
    torch.testing.assert_close(net(x), model.train()(normalised(x)), rtol=1e-3, atol=1e-4)
    assert isinstance(net.model.bn1, BatchNorm)
    assert isinstance(trunk(weights=str(file), norm="fixed").model.bn1, FixedNorm)


@pytest.mark.parametrize(("name", "side"), [("mobilenet_v3_small", 32), ("vit_b_32", 224)])
def test_hard_sigmoids_and_attention_can_be_differentiated_twice(tv: Any, name: str, side: int) -> None:
    net = trunk((1, side, side), name=name)
    scale = torch.ones(1, requires_grad=True)
    slope = torch.autograd.grad(net(scale * torch.rand(2, 1, side, side)).sin().sum(), scale, create_graph=True)
    assert torch.autograd.grad(slope[0], scale)[0].abs() > 0


def test_the_hard_sigmoid_is_torchs() -> None:
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(HardSigmoid()(x), nn.functional.hardsigmoid(x))


def test_fresh_weights_see_the_images_as_they_are(tv: Any) -> None:
    net, x = trunk(), torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x), net.model(x))


def test_one_channel_is_repeated_to_three(tv: Any, trained: Any) -> None:
    x = torch.rand(2, 1, 32, 32)
    for weights in (None, str(trained[1])):
        grey, colour = trunk((1, 32, 32), weights=weights), trunk((3, 32, 32), weights=weights)
        assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))


def test_no_layer_writes_in_place(tv: Any) -> None:
    for name in ("mobilenet_v3_small", "efficientnet_b0"):
        assert not [m for m in trunk(name=name).modules() if getattr(m, "inplace", False)]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_googlenet_comes_without_its_auxiliary_outputs(tv: Any) -> None:
    assert trunk((3, 32, 32), name="googlenet").features == 1024


def test_a_failed_download_names_the_remedy(tv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"backbone.weights=DEFAULT .*no route.*give the file's path"):
        trunk(weights="DEFAULT")


def test_what_cannot_work_is_said_in_one_line(tv: Any, tmp_path: Path) -> None:
    other, broken = tmp_path / "vgg.pt", tmp_path / "broken.pt"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    broken.write_bytes(b"nothing")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "resnet81"}, "resnet81 is no classifier of torchvision. Near it: .*resnet18"),
        ({"name": "vgg16", "shape": (3, 28, 28)}, "backbone.name=vgg16 cannot take 28x28 images"),
        ({"name": "vit_b_16"}, "backbone.name=vit_b_16 cannot take 32x32 images"),
        (
            {"weights": "IMAGENET"},
            "backbone.weights=IMAGENET is neither a file nor one of null, IMAGENET1K_V1",
        ),
        ({"weights": str(other)}, "is no state dict of this backbone.name"),
        ({"weights": str(broken)}, "is no state dict of this backbone.name"),
        ({"norm": "fixed"}, "backbone.norm=fixed needs"),
        ({"norm": "bach"}, "backbone.norm=bach"),
        ({"shape": (2, 32, 32)}, "1 or 3 channels"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            trunk(**changes)
        assert "\n" not in str(caught.value)
