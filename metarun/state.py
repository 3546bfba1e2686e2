"""Everything that changes while training: what a checkpoint holds, and what a resumed run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metarun.engine.mapping import Parallel
from metarun.errors import UserError, one_line
from metarun.types import PACE, Optimizer, Params, learned, paces

SCALARS = ("step", "validated", "stale", "best", "seconds", "tasks_per_s")  # of a State
NUMBER = (int, float)
ENTRIES = {  # of a checkpoint, with their types
    **{"params": dict, "optimizer": dict, "parallel": (list, type(None)), "best": (dict, type(None))},
    **{"step": int, "validated": int, "stale": int, "seconds": NUMBER, "tasks_per_s": NUMBER},
}


@dataclass
class State:
    """Everything that changes while training: what is saved, and what resuming restores."""

    params: Params
    optimizer: Optimizer
    parallel: Parallel | None = None
    step: int = 0
    validated: int = -1  # the step of the last validation
    stale: int = 0  # validations since the best one
    best: dict[str, Any] | None = None  # {"step": int, "score": float, "val": scores}
    seconds: float = 0.0  # of all sessions, validation included
    tasks_per_s: float = 0.0  # at the last log

    def dump(self) -> dict[str, Any]:
        return {
            "params": dict(self.params),
            "optimizer": self.optimizer.state_dict(),
            "parallel": self.parallel and [self.parallel.mode, self.parallel.chunk],
            **{name: getattr(self, name) for name in SCALARS},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        try:
            self._restore(saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint to resume holds what no such run saves ({one_line(error)}). Start the run anew."
            ) from error

    def _restore(self, saved: dict[str, Any]) -> None:
        load_params(self.params, saved["params"])
        groups = self.optimizer.param_groups
        typed = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        if [set(group) for group in groups] != [set(group) for group in saved["optimizer"]["param_groups"]]:
            raise UserError(
                "the checkpoint to resume is of another optimiser. Leave out what was typed of optim and algo."
            )
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, options in zip(self.optimizer.param_groups, typed, strict=True):
            group.update(options)  # what is typed when resuming wins
        self.parallel = saved["parallel"] and Parallel(*saved["parallel"])
        for name in SCALARS:
            setattr(self, name, saved[name])
        if self.best is not None:
            self.best = {name: self.best[name] for name in ("step", "score", "val")}


def groups(algo: object, params: Params) -> list[Any]:
    """What an outer optimiser is made of: the learned entries, or where they have paces of their own, a group of each
    pace. Those of the outer rate itself come first."""
    own, pace = learned(params), paces(algo, params)
    found = sorted(set(pace.values()), key=lambda one: (one != 1, -one))
    if found == [1]:
        return [*own.values()]
    return [{"params": [p for name, p in own.items() if pace[name] == one], PACE: one} for one in found]


def load_params(params: Params, saved: Params) -> None:
    """Copies saved values into params; another network's are refused."""
    here = {name: tuple(p.shape) for name, p in params.items()}
    there = {name: tuple(p.shape) for name, p in saved.items()}
    if here != there:
        name = next(n for n in [*here, *there] if here.get(n) != there.get(n))
        raise UserError(
            f"the checkpoint to resume holds another network: {name} is {there.get(name, 'absent')} there and "
            f"{here.get(name, 'absent')} here. Leave out algo=, backbone= and data.ways= to take the run's own."
        )
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(saved[name])
