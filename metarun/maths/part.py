"""A module of an algorithm's own (a relation module, an embedding) as a pure function of θ, beside the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from metarun.types import Params


@dataclass(frozen=True)
class Part:
    """`part(params, *inputs)` calls the module with those entries of θ whose names begin with `name.`."""

    name: str
    make: Callable[[], nn.Module]
    module: nn.Module

    @staticmethod
    def build(name: str, make: Callable[[], nn.Module]) -> Part:
        with torch.random.fork_rng(devices=[]):
            return Part(name, make, make())

    def init(self, generator: torch.Generator) -> Params:
        """Its parameters as the generator draws them, named as entries of θ."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.make()
        return {f"{self.name}.{name}": p.detach() for name, p in fresh.named_parameters()}

    def __call__(self, params: Params, *inputs: Any) -> Any:
        prefix = f"{self.name}."
        own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
        return functional_call(self.module, own, inputs)
