"""Any weighting of TorchJD by its name, as FairGrad: whatever weighs objectives by the Gram matrix of their slopes.

    w = torchjd.aggregation.<weighting>Weighting(**options)(G),  divided by Σ w

An argument that has no default there is 1 unless `options` gives it. Each weighing waits for the device and is computed
on the CPU, in double precision. What a weighting draws at random is a matter of the step's lots, the same on all ranks.
One that keeps something from step to step is refused: no checkpoint holds that.

Quinton, Rey: Jacobian Descent for Multi-Objective Optimization. 2024, arXiv 2406.16232.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metarun.errors import one_line
from metarun.types import LOTS, Params, UserError, nearest

ENDING = "Weighting"


@dataclass(frozen=True)
class TorchJD:
    weighting: str
    options: Mapping[str, Any] | None

    needs: ClassVar[Literal["gram"]] = "gram"

    def __post_init__(self) -> None:
        options = self.options or {}
        takes = _arguments(_class(self.weighting))
        if unknown := [key for key in options if key not in takes]:
            what = f"balance.options.{unknown[0]} is no argument of {self.weighting}{ENDING}"
            raise UserError(f"{what}.{nearest(unknown[0], takes, 'balance.options.')}")
        _made(self.weighting, json.dumps(options))

    def init(self, tasks: int, size: int) -> Params:
        weigh(torch.eye(tasks), torch.zeros(tasks, dtype=torch.bool), torch.zeros(1), *self._words)  # refuses options
        return {LOTS: torch.zeros(1)}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        assert slopes is not None
        return weigh(slopes, losses.isnan(), kept[LOTS], *self._words), {}

    @property
    def _words(self) -> tuple[str, str]:
        """What an operation of torch can be told."""
        return self.weighting, json.dumps(self.options or {})


@torch.library.custom_op("metarun::torchjd_weights", mutates_args=())
def weigh(gram: Tensor, absent: Tensor, lots: Tensor, weighting: str, options: str) -> Tensor:
    """The weights [H] as one operation, into which neither a tracer nor vmap looks."""
    there = (~absent).nonzero()[:, 0].tolist()
    part = gram.detach().cpu().double()[there][:, there]
    weights = torch.zeros(len(gram), dtype=torch.float64)
    given = {k: [v[i] for i in there] if _is_by_head(v, len(gram)) else v for k, v in json.loads(options).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(lots.double().sum() * 2**24))
        try:
            found = _made(weighting, json.dumps(given))(part) if len(there) else weights
        except Exception as error:  # whatever TorchJD, or a solver of its own, raises
            what = f"balance.options={options} with {len(there)} heads: {weighting}{ENDING}"
            raise UserError(f"{what} says: {one_line(error).rstrip('.')}. Give it other options.") from error
    weights[there] = found.double().nan_to_num(0.0, 0.0, 0.0)[: len(there)]
    total = weights.sum()
    return (weights / total if total > 0 else weights).to(gram)


@weigh.register_fake
def _(gram: Tensor, absent: Tensor, lots: Tensor, weighting: str, options: str) -> Tensor:
    return gram.new_empty(gram.shape[:1])


@weigh.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    """One problem after the other."""
    rows = [
        weigh(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return torch.stack(rows), 0


def _is_by_head(value: Any, heads: int) -> bool:
    """Whether an option has an entry for each head."""
    return isinstance(value, list) and len(value) == heads


def _library() -> dict[str, Any]:
    """TorchJD's weightings by name."""
    try:
        from torchjd import aggregation
    except ImportError as error:
        remedy = "Install it, as by: pip install metarun[torchjd]"
        raise UserError(f"balance=torchjd needs TorchJD, which is not installed. {remedy}") from error
    every = {name.removesuffix(ENDING): made for name, made in vars(aggregation).items() if name.endswith(ENDING)}
    return {name: made for name, made in every.items() if name}


def _class(weighting: str) -> Any:
    """The weighting of a name; one that cannot be used here is refused."""
    every = _library()
    from torchjd import Stateful

    fitting = [name for name, made in every.items() if _by_gram(made) and not issubclass(made, Stateful)]
    what = f"balance.weighting={weighting}"
    if weighting not in every:
        raise UserError(f"{what} is not known to TorchJD.{nearest(weighting, fitting)}")
    if issubclass(every[weighting], Stateful):
        known = "Take balance=gradvac" if weighting == "GradVac" else f"Take another: {', '.join(sorted(fitting))}"
        raise UserError(f"{what} keeps a state that no checkpoint would hold. {known}.")
    if weighting not in fitting:
        raise UserError(f"{what} does not weigh by a Gram matrix. Take another: {', '.join(sorted(fitting))}.")
    return every[weighting]


def _by_gram(weighting: type) -> bool:
    """Whether a class is a Weighting[PSDMatrix]."""
    from torchjd.linalg import PSDMatrix

    bases = (base for part in weighting.__mro__ for base in getattr(part, "__orig_bases__", ()))
    return any(typing.get_args(base) == (PSDMatrix,) for base in bases)


def _arguments(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(made).parameters)


@cache
def _made(weighting: str, options: str) -> Callable[[Tensor], Tensor]:
    """The weighting with its options; a list is a tensor there."""
    found, given = _class(weighting), json.loads(options)
    given = {key: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for key, v in given.items()}
    lacking = {key: 1 for key, a in _arguments(found).items() if a.default is inspect.Parameter.empty}
    try:
        return found(**{**lacking, **given})
    except ImportError as error:
        raise UserError(f"balance.weighting={weighting}: {one_line(error)}") from error
    except (TypeError, ValueError) as error:
        what = f"balance.options={options}: {one_line(error).rstrip('.')}"
        raise UserError(f"{what}. Give {weighting}{ENDING} other options.") from error
