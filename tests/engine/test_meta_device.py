"""What stands in for a GPU: tensors of the *meta* device, which have a shape and no content.

A tensor that was left on the CPU cannot be combined with one of them, and a host synchronisation (`.item()`,
`.tolist()`, a branch on a value) finds no value: both are errors here, as one of them is on a GPU and the other slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.cli import CONF
from metarun.construct import target_of
from metarun.engine.mapping import Parallel
from metarun.loop import Loop, Plan, Window
from metarun.maths.net import Net
from metarun.optim.sam import SAM
from metarun.state import State
from metarun.types import Batch, Params, UserError, learned

META = torch.device("meta")
MAPPINGS = [Parallel("loop", 1), Parallel("vmap", 2), Parallel("vmap", 6)]
BALANCES = sorted(path.stem for path in (CONF / "balance").glob("*.yaml"))


def moved(tree: Any) -> Any:
    return tree_map(lambda t: t.to(META), tree)


def all_meta(tree: Any) -> bool:
    return all(leaf.is_meta for leaf in tree_leaves(tree))


def task_of(found: Any) -> Any:
    return moved(tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator()))))


def keys_of(name: str) -> list[dict[str, Any]]:
    """No other value than the YAML's; then, one at a time, each other that a key of few values can have."""
    section = yaml.safe_load((CONF / "algo" / f"{name}.yaml").read_text())["algo"]
    few = {}
    for key, hint in get_type_hints(target_of(section, "algo")).items():
        if hint is bool or get_origin(hint) is Literal:
            few[key] = [value for value in (get_args(hint) or (True, False)) if value != section[key]]
    return [{}, *({key: value} for key, values in few.items() for value in values)]


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_the_meta_gradient_of_every_algorithm_stays_on_the_device(
    algo_name: str, parallel: Parallel, norm_stats: str, case: Callable[..., Any]
) -> None:
    for keys in keys_of(algo_name):
        found = case(algo_name, "batch", norm_stats, **keys)
        slope, metrics = found.algo.meta_grad(moved(found.params), moved(found.sample), parallel)
        assert all_meta((slope, metrics))
        assert all(slope[name].shape == p.shape for name, p in learned(found.params).items())


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_every_algorithm_adapts_and_predicts_on_the_device(
    algo_name: str, norm_stats: str, case: Callable[..., Any]
) -> None:
    for keys in keys_of(algo_name):
        found = case(algo_name, "batch", norm_stats, **keys)
        task, params = task_of(found), moved(found.params)

        def outputs(task: Any, found: Any = found, params: Params = params) -> list[Any]:
            path = found.tested.adapt(params, task.support, 2)
            return [found.tested.predict(fast, task.query.x) for fast in path]

        with torch.no_grad():  # as it is evaluated: alone, and mapped
            try:
                assert all_meta(outputs(task))
            except UserError:  # with these keys it takes no new heads, as it says before training
                assert keys
                continue
            assert all_meta(torch.vmap(outputs)(tree_map(lambda t: t[None].expand(3, *t.shape), task)))


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_every_balance_weighs_on_the_device(balance: str, parallel: Parallel, case: Callable[..., Any]) -> None:
    found = case("mtl", balance=balance)
    params = moved(found.params)
    for sample in (moved(found.sample), tree_map(lambda t: t.flatten(0, 1)[None], moved(found.sample))):
        assert all_meta(found.algo.meta_grad(params, sample, parallel))


# The loop


def loop_of(algo: Any) -> Loop:
    """With a device for its generators alone: there are none for the meta device."""
    plan = Plan(
        seed=0,
        steps=3,
        tasks=6,
        lr=0.1,
        max_seconds=1e9,
        clip_value=1.0,
        clip_norm=1.0,
        log_every=99,
        val_every=99,
        patience=None,
    )
    nothing: Any = SimpleNamespace()
    return Loop(
        algo=lambda _: algo,
        sampler=nothing,
        validate=lambda _: {},
        score=lambda _: 0.0,
        factor=lambda *_: 1.0,
        choose=lambda *_: Parallel("vmap", 6),
        stop=lambda: None,
        plan=plan,
        tracker=SimpleNamespace(say=print),  # type: ignore[arg-type]
        folder=Path(),
        device=torch.device("cpu"),
    )


def steps(found: Any, optimizer: Callable[..., Any]) -> tuple[State, Window]:
    params = moved(found.params)
    state, window = State(params, optimizer([*learned(params).values()], lr=0.1)), Window()
    samples: Iterator[tuple[Any, int]] = iter([(moved(found.sample), 6)] * 3)
    loop = loop_of(found.algo)
    for _ in range(3):
        loop.step(state, samples, window)
    return state, window


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "sam": partial(SAM, rho=0.05, base=torch.optim.Adam),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_the_loop_fetches_nothing(algo_name: str, optimizer: str, case: Callable[..., Any]) -> None:
    state, window = steps(case(algo_name), OPTIMIZERS[optimizer])
    assert state.step == len(window.metrics) == 3 and all_meta((state.params, window.metrics))


@pytest.mark.parametrize("balance", BALANCES)
def test_a_step_of_the_loop_with_a_balance_fetches_nothing(balance: str, case: Callable[..., Any]) -> None:
    state, window = steps(case("mtl", balance=balance), OPTIMIZERS["sgd"])
    assert all_meta((state.params, window.metrics))


# The contract can fail


def broken(spoil: Callable[[Tensor], Tensor]) -> Any:
    """An algorithm whose loss goes through `spoil`, for the mapping that it is handed."""

    def loss(params: Params, task: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value = spoil((params["w"] - task.x).square()).mean()
        return value, {"loss": value.detach()}

    return SimpleNamespace(meta_grad=lambda params, batch, parallel: parallel.mean_grad(loss, params, batch))


def branch(values: Tensor) -> Tensor:
    return values if values.detach().mean() > 0 else -values


SPOILS = {
    "a tensor left on the CPU": lambda values: values * torch.ones(2),
    "an index of the CPU's rows": lambda values: values + torch.arange(2),
    "item": lambda values: values * values.detach().mean().item(),
    "tolist": lambda values: values * values.detach().tolist()[0],
    "float": lambda values: values * float(values.detach().mean()),
    "a copy to the CPU": lambda values: values.cpu(),
    "a branch on a value": branch,
    "a mask": lambda values: values[values.detach() > 0],
}


@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_tensor_of_the_cpu_and_a_fetch_are_both_errors(spoil: str, parallel: Parallel) -> None:
    params, batch = {"w": torch.zeros(2)}, Batch(torch.rand(6, 2) + 0.1, {})
    algo, sound = broken(SPOILS[spoil]), broken(lambda values: values)
    assert all_meta(sound.meta_grad(moved(params), moved(batch), parallel))
    if parallel.mode == "loop":
        algo.meta_grad(params, batch, parallel)  # where all is on one device nothing is wrong
    with pytest.raises((RuntimeError, NotImplementedError)):
        algo.meta_grad(moved(params), moved(batch), parallel)


def test_a_step_of_the_loop_that_fetches_is_an_error(conv_net: Callable[..., Net]) -> None:
    found = SimpleNamespace(algo=broken(branch), params={"w": torch.zeros(2)}, sample=Batch(torch.rand(6, 2), {}))
    with pytest.raises(RuntimeError):
        steps(found, OPTIMIZERS["sgd"])
