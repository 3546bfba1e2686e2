"""The sections of the config that belong to no group, with their types and bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from metarun.construct import COMPUTE_ONLY, AtLeast, Count, Natural, Rate, check, construct, shown
from metarun.engine.ranks import ALONE, Team
from metarun.errors import UserError

CHOSEN = ("algo", "data", "backbone", "optim", "schedule")
GROUPS = (*CHOSEN, "balance", "device")
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
    shots: Natural
    queries: Count
    adapt_steps: Natural
    seed: Natural
    data: str | None
    root: Annotated[str | None, COMPUTE_ONLY]
    keys: Mapping[str, Any] | None
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

    @cached_property
    def outer(self) -> Outer:
        return construct({key: value for key, value in self.config["optim"].items() if key == "lr"}, "optim", Outer)

    @property
    def sections(self) -> dict[str, Mapping[str, Any]]:
        """What `build` makes objects of, by group."""
        algo = {key: value for key, value in self.config["algo"].items() if key not in ("trains_on", "phases")}
        return {g: section for g, section in self.config.items() if g in GROUPS and section} | {"algo": algo}

    @property
    def trains_on(self) -> list[str]:
        """Ways to draw training tasks, of which the first that the data set offers is taken."""
        named = self.config["algo"].get("trains_on", "episodes")
        return [named] if isinstance(named, str) else [str(name) for name in named]

    @property
    def phases(self) -> dict[int, Mapping[str, Any]]:
        """The keys of `algo` that change at a step, and stay so, by step."""
        phases = self.config["algo"].get("phases") or {}
        for step, keys in phases.items():
            if not isinstance(step, int) or step < 1 or not isinstance(keys, Mapping):
                raise UserError(
                    f"algo.phases={phases}: write steps with keys of algo, as {{5000: {{first_order: false}}}}."
                )
        return dict(sorted(phases.items()))

    def check(self) -> None:
        """Refuses keys and values that what is chosen cannot take, before anything is loaded."""
        for group in CHOSEN:
            check(self.sections[group], group)
        _ = self.train, self.val, self.test, self.outer  # checked as they are read

    @property
    def resumes(self) -> bool:
        return self.config["resume"] is not None

    @property
    def only_tests(self) -> bool:
        return self.config["test"]["only"] is True

    @property
    def result_file(self) -> Path:
        """Where the result is written: a repeated meta-test has a file of its own."""
        return self.folder / (f"result-{self.label}.json" if self.only_tests else "result.json")

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
