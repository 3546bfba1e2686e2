"""Any classifier of torchvision, without its output layer, made fit for function transforms."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarun.errors import UserError, one_line
from metarun.maths.norm import BatchNorm, FixedNorm, norm_layer
from metarun.types import PROTOCOL

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # mean and deviation of red, green, blue
INPLACE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Dropout)


class TorchVision(nn.Module):
    """`name` of torchvision with fresh weights (`weights: null`), torchvision's by name, or those of a file.

    One-channel images become grey ones of three; with given weights, [0, 1] is normalised as ImageNet was.
    `norm: batch` uses the batch's statistics, `fixed` those that came with the weights.
    Stochastic depth is left out: it draws in place, which vmap refuses.
    """

    def __init__(self, shape: tuple[int, ...], name: str, weights: Annotated[str | None, PROTOCOL], norm: str) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(f"backbone.name={name} takes images of 1 or 3 channels; the data gives {shape}.")
        if norm == "fixed" and weights is None:
            raise UserError("backbone.norm=fixed needs the statistics of trained weights: set backbone.weights.")
        tv = _torchvision(name)
        self.normalise = weights is not None
        self.model, self.features = _headless(tv, name, weights)
        _adapt(self.model, tv, norm)
        _try(self, shape, name)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if self.normalise:
            # Numbers instead of a tensor: a buffer would have to be moved to every device.
            x = torch.stack([(x[:, i] - mean) / std for i, (mean, std) in enumerate(IMAGENET)], 1)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            return self.model(x)


class HardSigmoid(nn.Module):
    """y = min(max(x + 3, 0), 6) / 6; torch's own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def _torchvision(name: str) -> ModuleType:
    try:
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:  # its compiled part fits one build of torch only
        raise UserError(
            f"backbone.name={name} needs torchvision, which does not load ({_line(error)}): install the "
            f"build for torch {torch.__version__}, or take another backbone."
        ) from error
    return torchvision


def _headless(tv: ModuleType, name: str, weights: str | None) -> tuple[nn.Module, int]:
    """The model with its last linear layer replaced by the identity, and that layer's input width."""
    known = tv.models.list_models(module=tv.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, cutoff=0.4) or known
        raise UserError(f"backbone.name={name} is no classifier of torchvision. Near it: {', '.join(near)}.")
    choices = tv.models.get_model_weights(name).__members__
    options: dict[str, Any] = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    try:
        model = tv.models.get_model(name, weights=choices.get(weights), **options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"backbone.weights={weights} cannot be downloaded for {name} ({_line(error)}): "
            "fetch them elsewhere and give the file's path, or take weights=null."
        ) from error
    linear = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"backbone.name={name} has no linear output layer to replace: take another model.")
    path, head = linear[-1]
    model.set_submodule(path, nn.Identity())
    if weights is not None and weights not in choices:
        _load(model, path, weights, list(choices))
    return model, head.in_features


def _load(model: nn.Module, head: str, file: str, choices: list[str]) -> None:
    """Fills the model from a state dict, whose output layer may have any width."""
    if not Path(os.path.expanduser(file)).is_file():
        raise UserError(f"backbone.weights={file} is neither a file nor one of null, {', '.join(choices)}.")
    try:
        state = torch.load(Path(os.path.expanduser(file)), map_location="cpu", weights_only=True)
        model.load_state_dict({key: v for key, v in state.items() if not key.startswith(f"{head}.")})
    except Exception as error:  # torch.load names no class: a foreign file can fail anywhere in it
        raise UserError(
            f"backbone.weights={file} is no state dict of this backbone.name ({_line(error)}): "
            "save one with torch.save(model.state_dict(), file)."
        ) from error


def _adapt(model: nn.Module, tv: ModuleType, norm: str) -> None:
    """Replaces what keeps state or writes in place."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(path, _norm(layer, norm))
        elif isinstance(layer, tv.ops.StochasticDepth):
            model.set_submodule(path, nn.Identity())
        elif isinstance(layer, nn.Hardsigmoid):
            model.set_submodule(path, HardSigmoid())
        elif isinstance(layer, INPLACE):
            layer.inplace = False


@torch.no_grad()
def _norm(old: nn.BatchNorm2d, kind: str) -> nn.Module:
    if kind == "fixed":
        assert old.running_mean is not None and old.running_var is not None
        scale = old.weight / (old.running_var + old.eps).sqrt()
        return FixedNorm(scale, old.bias - scale * old.running_mean)
    new = BatchNorm(old.num_features, old.eps) if kind == "batch" else norm_layer(kind, old.num_features)
    new.load_state_dict({"weight": old.weight, "bias": old.bias} if list(new.parameters()) else {})
    return new


def _try(trunk: TorchVision, shape: tuple[int, ...], name: str) -> None:
    """Sends a shape through the network: no numbers, no memory, and the answer before training starts."""
    named = [*trunk.named_parameters(), *trunk.named_buffers()]
    try:
        functional_call(trunk, {key: t.to("meta") for key, t in named}, (torch.empty(2, *shape, device="meta"),))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"backbone.name={name} cannot take {shape[1]}x{shape[2]} images ({_line(error)}): "
            "take larger images or another model."
        ) from error


def _line(error: Exception) -> str:
    """An error in one line of bearable length."""
    return one_line(error)[:200]
