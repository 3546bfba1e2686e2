"""The sections of the config that belong to no group, with their types and bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from metarun.construct import construct, shown
from metarun.engine.ranks import ALONE, Team
from metarun.errors import UserError

AT_LEAST = {
    "data.ways": 1,
    "data.shots": 0,
    "data.queries": 1,
    "algo.inner_steps": 0,
    "algo.inner_batch": 1,
    "train.steps": 1,
    "train.tasks": 1,
    "train.shots": 1,
    "train.queries": 1,
    "train.log_every": 1,
    "val.every": 1,
    "val.tasks": 2,
    "val.patience": 1,
    "test.tasks": 2,
    "test.shots": 0,
    "test.queries": 1,
    "test.adapt_steps": 0,
    "device.index": 0,
    "device.threads": 1,
    "chunk": 1,
    "seed": 0,
    "optim.lr": 0,
    "optim.weight_decay": 0,
    "algo.inner_lr": 0,
    "train.clip_value": 0,
    "train.clip_norm": 0,
}
CHOSEN = ("algo", "data", "backbone", "optim", "schedule")
GROUPS = (*CHOSEN, "balance", "device")
SECTIONS = (*CHOSEN, "device", "train", "val", "test")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Root:
    """The keys that stand in no section."""

    name: str
    seed: int
    resume: str | None
    norm_stats: Literal["batch", "support"]
    parallel: Literal["auto", "measure", "loop", "vmap"]
    chunk: int | None
    compile: bool
    precision: Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Train:
    steps: int
    tasks: int
    ways: int
    shots: int
    queries: int
    max_time: str | float | None
    clip_value: float | None
    clip_norm: float | None
    log_every: int

    @property
    def max_seconds(self) -> float:
        return seconds(self.max_time)


@dataclass(frozen=True)
class Val:
    every: int
    tasks: int
    patience: int | None
    seed: int


@dataclass(frozen=True)
class Test:
    tasks: int
    ways: int
    shots: int
    queries: int
    adapt_steps: int
    seed: int
    data: str | None
    root: str | None
    only: bool


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
    """Refuses numbers that cannot be: zero steps, a negative learning rate."""
    for key, least in AT_LEAST.items():
        section, _, name = key.rpartition(".")
        value = (config[section] if section else config).get(name)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"{key}={value} is too small. Give {least} or more.")


@dataclass(frozen=True)
class Job:
    """One run as the command line asked for it."""

    config: Mapping[str, Any]
    choices: Mapping[str, str]  # group -> the name of what was chosen
    test_data: Mapping[str, Any] | None  # the section of another data set for the meta-test
    folder: Path  # of the run
    label: str  # of a repeated meta-test's result file
    remember: Callable[[], None]  # keeps the config of a resumed run, once it is known to go on
    team: Team = ALONE

    @cached_property
    def root(self) -> Root:
        return construct({k: v for k, v in self.config.items() if not isinstance(v, Mapping)}, "", Root)

    @cached_property
    def train(self) -> Train:
        return construct(self.config["train"], "train", Train)

    @cached_property
    def val(self) -> Val:
        return construct(self.config["val"], "val", Val)

    @cached_property
    def test(self) -> Test:
        return construct(self.config["test"], "test", Test)

    @property
    def sections(self) -> dict[str, Mapping[str, Any]]:
        """What `build` makes objects of, by group."""
        return {group: section for group, section in self.config.items() if group in GROUPS and section}

    @property
    def resumes(self) -> bool:
        return self.config["resume"] is not None

    @property
    def only_tests(self) -> bool:
        return self.config["test"]["only"] is True

    def owner(self, section: str) -> str:
        """The section in which a task's size was set: `section` itself where it differs from `data`."""
        own, data = self.config[section], self.config["data"]
        return "data" if all(own[key] == data[key] for key in ("ways", "shots", "queries")) else section

    def hparams(self) -> dict[str, bool | int | float | str]:
        """What runs are compared by: the choices by name, and every number and switch of the config."""
        named: dict[str, Any] = {group: self.choices[group] for group in ("algo", "data", "backbone")}
        named["seed"] = self.config["seed"]
        for section in ("algo", "data", "optim", "train"):
            for key, value in self.config[section].items():
                if isinstance(value, bool | int | float | str) and not key.startswith("_"):
                    named[f"{section}.{key}"] = value
        return named
