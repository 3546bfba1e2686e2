"""The sections of the config that belong to no group, with their types and bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from metarun.construct import COMPUTE_ONLY, AtLeast, Count, Natural, Rate, check, construct, shown
from metarun.errors import UserError

CHOSEN = ("algo", "data", "backbone", "optim", "schedule")
SECTIONS = (*CHOSEN, "device", "train", "val", "test")
Several = Annotated[int, AtLeast(2)]  # tasks: an interval needs two
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Root:
    """The keys that stand in no section."""

    name: Annotated[str, COMPUTE_ONLY]
    seed: Natural
    resume: Annotated[str | None, COMPUTE_ONLY]
    norm_stats: Literal["batch", "support"]
    parallel: Annotated[Literal["auto", "measure", "loop", "vmap"], COMPUTE_ONLY]
    chunk: Annotated[Count | None, COMPUTE_ONLY]
    compile: Annotated[bool, COMPUTE_ONLY]
    precision: Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Train:
    """How long and on how much to train; ways, shots and queries of its tasks."""

    steps: Count
    tasks: Count
    ways: Count
    shots: Count
    queries: Count
    max_time: str | float | None
    clip_value: Rate | None
    clip_norm: Rate | None
    log_every: Annotated[Count, COMPUTE_ONLY]

    @property
    def max_seconds(self) -> float:
        return seconds(self.max_time)


@dataclass(frozen=True)
class Val:
    """When and on how many tasks to validate."""

    every: Count
    tasks: Several
    patience: Count | None
    seed: Natural


@dataclass(frozen=True)
class Test:
    """The meta-test, and the ways, shots and queries of validation and test tasks."""

    tasks: Several
    ways: Count
    shots: Count
    queries: Count
    adapt_steps: Natural
    seed: Natural
    data: str | None
    root: Annotated[str | None, COMPUTE_ONLY]
    only: Annotated[bool, COMPUTE_ONLY]


@dataclass(frozen=True)
class Outer:
    """What the loop itself reads of an optimiser's section: the rate that the schedule multiplies."""

    lr: Rate


def seconds(text: str | float | None) -> float:
    """`90s`, `10m`, `2h`, `1d` or a number of seconds; none is no limit."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(text))
    if not found:
        raise UserError(f"train.max_time={text} is no time. Write 90s, 10m, 2h or 1d.")
    return float(found[1]) * UNITS[found[2] or "s"]


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuses a config of which a section was deleted or made a number."""
    for section in SECTIONS:
        if not isinstance(config.get(section), Mapping):
            raise UserError(
                f"{section}={shown(config.get(section))} is no section of the config. "
                f"Set its keys one by one, as {section}.key=value."
            )
        if section in CHOSEN and "_target_" not in config[section]:
            raise UserError(f"{section}= is missing. Choose one; metarun --help names them.")
    if "seed" not in config:
        raise UserError("seed is missing. Give it a value.")


def check_bounds(config: Mapping[str, Any]) -> None:
    """Refuses keys and values of the chosen sections that what they choose cannot take, before anything is loaded."""
    for section in CHOSEN:
        check(config[section], section)
    construct({key: value for key, value in config["optim"].items() if key == "lr"}, "optim", Outer)
