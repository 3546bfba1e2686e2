"""Whether an object is what its place in a run asks for: told in one line, and before training.

The interfaces are the protocols of types.py. Which names an object has, and what its methods take, is seen at once;
what those of one's own return is seen on one task.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from metarun.engine.device import seed_draws
from metarun.engine.mapping import Parallel
from metarun.types import Algorithm, Batch, Episode, MetaGradient, Params, UserError, learned

Made = TypeVar("Made")


def fulfilled(made: Made, interface: type, prefix: str) -> Made:
    """Returns `made`, if it has all that an interface asks for."""
    wanted = sorted(_names(interface))
    name, kind = type(made).__name__, interface.__name__
    lacking = [n for n in wanted if not hasattr(made, n)]
    if lacking:
        has = ", ".join(wanted)
        raise _unfit(prefix, f"{name} has no {' and no '.join(lacking)}", f"An {kind} of metarun has {has}")
    for method in wanted:
        there, asked = getattr(made, method), getattr(interface, method, None)
        if inspect.isfunction(asked) and not _can_be_called(there, names := _arguments_of(asked)):
            call = f"{method}({', '.join(names)})"
            raise _unfit(prefix, f"{name}.{method} cannot be called as {call}", "Let it take these")
    return made


def is_own(made: object) -> bool:
    """Whether somebody else wrote it: what metarun brings was tested."""
    return type(made).__module__.partition(".")[0] != "metarun"


def check_trunk(trunk: nn.Module, shape: tuple[int, ...], *heads: int) -> None:
    """Refuses a backbone whose outputs are not as wide as it says; of so many heads, a sharing architecture."""
    features, prefix = trunk.features, "sharing" if heads else "backbone"
    with torch.no_grad():
        found = trunk(torch.zeros(2, *shape))
    if not isinstance(found, Tensor) or found.shape != (2, *heads, features):
        what = f"{type(trunk).__name__} makes {_words(found)} of 2 inputs, and its `features` are {features}"
        each = "each head and input" if heads else "each input"
        raise _unfit(prefix, what, f"Let it return one row of so many features for {each}")


def check_algorithm(trained: Algorithm, tested: Algorithm, params: Params, episode: Episode, sample: Any) -> None:
    """Refuses an algorithm whose methods do not return what they should, on one task of a test and of a meta-step."""
    name = type(trained).__name__
    support, query = tree_map(lambda t: t[0], episode)
    path = tested.adapt(params, support, 1)
    if not isinstance(path, Iterator):
        raise _unfit("algo", f"{name}.adapt returns {_words(path)}", "Let it yield φ after each step, φ₀ = θ first")
    with torch.no_grad():
        steps = list(path)
        if not steps or not all(_is_params(fast) for fast in steps):
            wrong = next((f for f in steps if not _is_params(f)), None)
            raise _unfit("algo", f"{name}.adapt yields {_words(wrong)}", "Let it yield a dict of tensors for each step")
        outputs = tested.predict(steps[-1], query.x)
    wanted = {head: (len(query.x), h.size) for head, h in tested.net.heads.items()}
    if not _is_params(outputs) or {head: tuple(o.shape) for head, o in outputs.items()} != wanted:
        shapes = ", ".join(f"{head} {list(shape)}" for head, shape in wanted.items())[:200]
        raise _unfit("algo", f"{name}.predict returns {_words(outputs)}", f"Let it return a dict of tensors: {shapes}")
    answers = []
    for _ in range(2):
        seed_draws(next(iter(params.values())).device, 0)
        answers.append(trained.meta_grad(params, sample, Parallel("loop", 1)))
        _check_meta_gradient(name, answers[-1], params)
    if not _alike(*answers):
        remedy = "Let what changes from step to step be an entry of θ (now.step, now.lots), or drawn by torch"
        raise _unfit("algo", f"{name}.meta_grad gives two answers to one question", remedy)


def check_sample(algo: MetaGradient, sample: Any, by: str) -> None:
    """Refuses training tasks, drawn `by` what the config says, of another kind than meta_grad is written for."""
    try:
        asked = list(typing.get_type_hints(type(algo).meta_grad).values())[1]
    except (NameError, IndexError):  # one of the user's own need not say
        return
    if asked in (Batch, Episode) and not isinstance(sample, asked):
        drawn = {Batch: "group or rows", Episode: "episodes"}[asked]
        raise UserError(f"algo.trains_on={by}: {type(algo).__name__} trains on {drawn}. Leave it out, or take that.")


def check_params(params: Any, name: str) -> None:
    """Refuses what an algorithm's `init` returned where it is not θ."""
    if not _is_params(params):
        raise _unfit("algo", f"{name}.init returns {_words(params)}", "Let it return θ, a dict of tensors by name")


def _check_meta_gradient(name: str, found: Any, params: Params) -> None:
    whole = isinstance(found, tuple) and len(found) == 2 and all(map(_is_params, found))
    if not whole or "loss" not in found[1]:
        remedy = "Let it return two dicts of tensors: slopes, and metrics of which one is `loss`"
        raise _unfit("algo", f"{name}.meta_grad returns {_words(found)}", remedy)
    for key, p in learned(params).items():
        if key not in found[0] or found[0][key].shape != p.shape:
            what = f"{name}.meta_grad returns no slope of {key} {list(p.shape)}"
            raise _unfit("algo", what, "Let it return one for each learned entry of θ")


def _alike(first: Any, second: Any) -> bool:
    """Whether two trees hold the same tensors, up to rounding."""
    (one, form), (other, shape) = tree_flatten(first), tree_flatten(second)
    if form != shape or [t.shape for t in one] != [t.shape for t in other]:
        return False
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True) for a, b in zip(one, other, strict=True))


def _is_params(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def _names(interface: type) -> set[str]:
    """What an interface, and those it is made of, ask for."""
    parts = [part for part in interface.__mro__ if typing.Protocol in part.__bases__]
    found = {name for part in parts for name in (*vars(part), *inspect.get_annotations(part))}
    return {name for name in found if not name.startswith("_")} | ({"__call__"} & found)


def _arguments_of(method: Any) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


def _can_be_called(method: Any, names: list[str]) -> bool:
    try:
        inspect.signature(method).bind(*names)
    except TypeError:
        return False
    except ValueError:  # of what is written in C nobody knows
        return True
    return True


def _words(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, dict):
        return "a dict of " + (", ".join(f"{key} ({_words(v)})" for key, v in value.items())[:120] or "nothing")
    if isinstance(value, tuple):
        return "a tuple of " + (", ".join(map(_words, value))[:120] or "nothing")
    return "nothing" if value is None else f"a {type(value).__name__}"


def _unfit(prefix: str, what: str, remedy: str) -> UserError:
    return UserError(f"{prefix}: {what}. {remedy}; metarun/types.py says it in full.")
