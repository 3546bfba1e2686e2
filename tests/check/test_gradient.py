"""A wrong meta-gradient is found, whatever is wrong with it; a right one is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from metarun.algos.maml import MAML
from metarun.check.gradient import meta_gradient
from metarun.check.smooth import Smooth
from metarun.engine.mapping import Parallel
from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import LOTS, Batch, Episode, Head, Metrics, Outputs, ParallelMap, Params, learned

SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Own:
    """MAML of two steps with a slope that is bent, and with what else a learner may hold."""

    net: Net
    bend: Callable[[Params], Params] = lambda slope: slope
    detached: bool = False  # the second-order term is missing, and nothing says so

    def init(self, generator: torch.Generator) -> Params:
        more = {"memory.seen": torch.tensor(0.0), LOTS: torch.zeros(3), "scale": torch.tensor(1.5)}
        return {**self.net.init(generator), **more}

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        def loss(fast: Params, support: Batch, _: int) -> Tensor:
            return self.net.loss(fast, support)

        adapted = [*self.net.names(params, "trunk.*"), *self.net.names(params, "head.*")]
        for fast in sgd(loss, params, support, 0.4, steps, adapted, self.detached):
            yield self.net.given(fast, support)

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        scale = fast["scale"] + fast["memory.seen"] + fast[LOTS].sum()
        return {name: scale * output for name, output in self.net(fast, x).items()}

    def meta_grad(self, params: Params, episode: Episode, parallel: ParallelMap) -> tuple[Params, Metrics]:
        slope, metrics = query_grad(self, params, episode, parallel, 2)
        return {**self.bend(slope), "memory.seen": params["memory.seen"] + 1}, metrics


@dataclass(frozen=True)
class Declared(Own):
    first_order: ClassVar[bool] = True


@pytest.fixture
def net() -> Net:
    return Net.build(partial(Smooth, SHAPE, True), {"class": Head("class", 3)}, "batch")


@pytest.fixture
def sample(episode: Callable[..., Episode]) -> Episode:
    return episode(tasks=2)


def start(algo: Any) -> Params:
    return algo.init(torch.Generator().manual_seed(0))


def test_a_right_slope_holds_memories_and_lots_fixed(net: Net, sample: Episode) -> None:
    outcome = meta_gradient(Own(net), start(Own(net)), sample, step=7)
    assert outcome.holds and "in each of 11 entries" in outcome.found


def test_the_parameters_are_not_changed(net: Net, sample: Episode) -> None:
    params = start(Own(net))
    before = {name: p.clone() for name, p in params.items()}
    meta_gradient(Own(net), params, sample)
    assert all(p.equal(before[name]) for name, p in params.items())


BENT: dict[str, Callable[[Params], Params]] = {
    "the wrong sign": lambda slope: {name: -g for name, g in slope.items()},
    "a factor of two": lambda slope: {name: 2 * g for name, g in slope.items()},
    "one entry in a hundred": lambda slope: {**slope, "scale": 1.01 * slope["scale"]},
    "an entry that is left out": lambda slope: {**slope, "head.bias": 0 * slope["head.bias"]},
    "two entries exchanged": lambda slope: {
        **slope,
        "trunk.blocks.0.norm.weight": slope["trunk.blocks.0.norm.bias"],
        "trunk.blocks.0.norm.bias": slope["trunk.blocks.0.norm.weight"],
    },
    "no number": lambda slope: {name: g / 0 for name, g in slope.items()},
}


@pytest.mark.parametrize("what", BENT)
def test_a_bent_slope_is_found(what: str, net: Net, sample: Episode) -> None:
    algo = Own(net, BENT[what])
    assert meta_gradient(algo, start(algo), sample).holds is False


def test_the_entry_that_is_wrong_is_named(net: Net, sample: Episode) -> None:
    algo = Own(net, BENT["an entry that is left out"])
    found = meta_gradient(algo, start(algo), sample).found
    assert found.startswith("along head.bias the loss changes by ") and "meta_grad says 0. If" in found


def test_a_missing_second_order_term_is_found_where_nothing_says_so(net: Net, sample: Episode) -> None:
    silent, declared = Own(net, detached=True), Declared(net, detached=True)
    outcome = meta_gradient(silent, start(silent), sample)
    assert outcome.holds is False and "first_order = True" in outcome.found
    assert meta_gradient(declared, start(declared), sample).holds


def test_first_order_still_has_to_lead_upwards(net: Net, sample: Episode) -> None:
    algo = Declared(net, BENT["the wrong sign"], detached=True)
    outcome = meta_gradient(algo, start(algo), sample)
    assert outcome.holds is False and "is -" in outcome.found


def test_the_cosine_of_a_whole_slope_is_one_and_that_of_a_part_is_its_share(net: Net, sample: Episode) -> None:
    """By some random directions: the estimate is within a few hundredths."""
    whole = Declared(net)
    assert meta_gradient(whole, start(whole), sample).found.endswith(" 1.00")
    params = {name: p.double() for name, p in start(whole).items()}
    slope = learned(whole.meta_grad(params, sample, Parallel("vmap", 2))[0])
    part = slope["head.weight"].norm() / torch.cat([g.flatten() for g in slope.values()]).norm()
    alone = Declared(net, lambda slope: {n: g if n == "head.weight" else 0 * g for n, g in slope.items()})
    found = float(meta_gradient(alone, start(alone), sample).found.rpartition(" ")[2])
    assert found == pytest.approx(float(part), abs=0.1)


def test_maml_is_right_with_many_steps_and_with_statistics_of_the_support_set(net: Net, sample: Episode) -> None:
    for own in (net, replace(net, norm_stats="support")):
        algo = MAML(own, 0.4, 3, False, "mean", False, True)
        assert meta_gradient(algo, start(algo), sample).holds
