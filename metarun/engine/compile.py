"""A meta-gradient as one compiled program."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from metarun.errors import UserError
from metarun.types import MetaGradient, Metrics, ParallelMap, Params


@dataclass(frozen=True)
class Compiled:
    """The same meta-gradient, for each mapping traced to plain operations on tensors at its first call and compiled.

    Tracing comes first because torch.compile does not take derivatives inside vmap inside derivatives.
    """

    algo: MetaGradient
    programs: dict[Any, Callable[[Params, Any], tuple[Params, Metrics]]] = field(default_factory=dict)

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]:
        key = parallel, tuple(leaf.shape for leaf in tree_leaves(sample))
        if key not in self.programs:
            print(f"compiling the meta-step ({parallel}): its first run takes a minute or more", flush=True)
            traced = make_fx(partial(self.algo.meta_grad, parallel=parallel))(params, sample)
            self.programs[key] = torch.compile(traced, dynamic=False)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\._inductor")  # it recommends what precision= decides
                return self.programs[key](params, sample)
        return self.programs[key](params, sample)


def check_compiler(device: torch.device) -> None:
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("compile=true needs a C++ compiler on a CPU. Install g++, or leave compile out.")
