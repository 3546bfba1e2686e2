"""The systems that are timed against each other compute the same meta-gradient, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from benchmarks import libraries, plain
from benchmarks.systems import ByHand
from benchmarks.workloads import WORKLOADS, job
from metarun.build import build
from metarun.engine.mapping import Parallel
from metarun.run import first_params

SMALL = {  # the workloads as they are, but narrow, and on noise in place of Omniglot
    "W1": "data=noise backbone.channels=[3,4]",
    "W2": "data=noise backbone.channels=[3,4]",
    "W3": "data=noise backbone.channels=[3,4]",
    "W4": "data=noise backbone.channels=[3,4]",
    "W5": "",
    "W6": "data=noise backbone.channels=[3,4]",
    "W7": "data.size=8 backbone.channels=[3,4]",
}


def small(name: str) -> list[str]:
    own = [o for o in WORKLOADS[name].overrides if not o.startswith(("data.split=", "train.tasks="))]
    return [*own, *SMALL[name].split(), "train.tasks=3", "device=cpu"]


def double(tree: Any) -> Any:
    return tree_map(lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t, tree)


def agree(name: str, maml: Callable[..., None], close: Callable[..., bool]) -> bool:
    """Whether a loop by hand arrives at metarun's meta-gradient from the same parameters and episodes."""
    work = job(*small(name))
    parts = build(work)
    params = double(first_params(work, parts))
    made = ByHand.of(work, parts, maml)
    made.model.double()
    made.load(params)
    generator = torch.Generator().manual_seed(0)
    sample = parts.sampler.gather(parts.sampler.draw(work.train.tasks, generator))
    theirs, _ = parts.algo(0).meta_grad(params, double(sample), Parallel("loop", 1))
    made.accumulate(double(made.draw()))
    return close(made.grads(params), theirs)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_plain_loop_computes_metaruns_meta_gradient(name: str, close: Callable[..., bool]) -> None:
    assert agree(name, plain.maml, close)


@pytest.mark.parametrize("library", ["higher", "learn2learn"])
@pytest.mark.parametrize("name", ["W1", "W3", "W5"])
def test_a_library_computes_metaruns_meta_gradient(library: str, name: str, close: Callable[..., bool]) -> None:
    pytest.importorskip(library, exc_type=ImportError)
    assert agree(name, getattr(libraries, library), close)
