"""The sections of the config that belong to no group, with their types and bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from metarun.bounds import AtLeast, Count, FileName, Natural, Positive, Rate, Seed, Size, Span, SpanOrNone, Steps
from metarun.construct import COMPUTE_ONLY, PLACE, check, construct, marked, nearest, shown, takes
from metarun.engine.ranks import ALONE, Team
from metarun.errors import UserError

CHOSEN = ("algo", "data", "backbone", "optim", "schedule")
OPTIONAL = ("balance", "sharing")  # groups of which nothing need be chosen
GROUPS = (*CHOSEN, *OPTIONAL, "device")
SECTIONS = (*CHOSEN, "device", "train", "val", "test")
GIVEN = {  # by the run
    "algo": ("net",),
    "backbone": ("shape",),
    "sharing": ("make_trunk", "heads", "shape"),
    "optim": ("params",),
    "schedule": ("step", "steps"),
}
Several = Annotated[int, AtLeast(2)]  # tasks: an interval needs two
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Root:
    """The keys that stand in no section."""

    name: Annotated[str, FileName(), COMPUTE_ONLY]
    seed: Seed
    resume: Annotated[str | None, COMPUTE_ONLY]
    norm_stats: Literal["batch", "support"]
    parallel: Annotated[Literal["auto", "measure", "loop", "vmap"], COMPUTE_ONLY]
    chunk: Annotated[Count | None, COMPUTE_ONLY]
    compile: Annotated[bool | Literal["auto"], COMPUTE_ONLY]
    precision: Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Train:
    """How long and on how much to train; ways, shots and queries of its tasks."""

    steps: Natural  # with 0, what training begins with is tested
    tasks: Count
    ways: Span
    shots: SpanOrNone
    queries: Size
    max_time: str | float | None
    clip_value: Positive | None
    clip_norm: Positive | None
    log_every: Annotated[Count, COMPUTE_ONLY]

    def __post_init__(self) -> None:
        seconds(self.max_time)  # refused now, if it is none

    @property
    def max_seconds(self) -> float:
        return seconds(self.max_time)


@dataclass(frozen=True)
class Val:
    """When and on how many tasks to validate."""

    every: Count
    tasks: Several
    patience: Count | None
    seed: Seed


@dataclass(frozen=True)
class Test:
    """The meta-test, and the ways, shots and queries of validation and test tasks."""

    tasks: Several
    ways: Span
    shots: SpanOrNone
    queries: Size
    adapt_steps: Steps
    seed: Seed
    data: str | None
    root: Annotated[str | None, COMPUTE_ONLY, PLACE]
    keys: Mapping[str, Any] | None
    only: Annotated[bool, COMPUTE_ONLY]


@dataclass(frozen=True)
class Course:
    """What the run itself reads of an algorithm's section: what it trains on, which keys change at which step, and the
    finished run that it takes over from."""

    trains_on: str | Sequence[str] = "episodes"
    phases: dict[int, Any] | None = None
    source: Annotated[str | None, PLACE] = None

    def __post_init__(self) -> None:
        if not self.trains_on:
            raise UserError("algo.trains_on names nothing to train on. Give episodes, group or rows.")
        for step, keys in (self.phases or {}).items():
            if not isinstance(step, int) or step < 1 or not isinstance(keys, Mapping):
                raise UserError(
                    f"algo.phases={self.phases}: write steps with keys of algo, as {{5000: {{first_order: false}}}}."
                )


@dataclass(frozen=True)
class Outer:
    """What the loop itself reads of an optimiser's section: the rate that the schedule multiplies."""

    lr: Rate


COURSE = frozenset(field.name for field in fields(Course))


def seconds(text: str | float | None) -> float:
    """`90s`, `10m`, `2h`, `1d` or a number of seconds; none is no limit."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(text))
    if not found:
        raise UserError(f"train.max_time={text} is no time. Write 90s, 10m, 2h or 1d.")
    return float(found[1]) * UNITS[found[2] or "s"]


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuses a config that lacks a section, or has one that nobody reads, and wrong keys of the run's own."""
    for section in sorted({key for key, value in config.items() if isinstance(value, Mapping)} - {*SECTIONS, *GROUPS}):
        raise UserError(f"{section} is no section of the config.{nearest(section, {*SECTIONS, *GROUPS})}")
    for section in SECTIONS:
        if not isinstance(config.get(section), Mapping):
            raise UserError(
                f"{section}={shown(config.get(section))} is no section of the config. "
                f"Set its keys one by one, as {section}.key=value."
            )
        if section in CHOSEN and "_target_" not in config[section]:
            raise UserError(f"{section}= is missing. Choose one; metarun --help names them.")
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    for name, kind in (("", Root), ("train", Train), ("val", Val), ("test", Test)):
        check(config[name] if name else plain, name, kind, given=())


def places(config: Mapping[str, Any]) -> list[str]:
    """The keys that say where something lies."""
    chosen = [key for group in CHOSEN for key in marked(PLACE, config[group], group)]
    course = {key: value for key, value in config["algo"].items() if key in COURSE}
    return [*chosen, *marked(PLACE, course, "algo", Course), *marked(PLACE, config["test"], "test", Test)]


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
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of data sets that the chosen one names
    source: Mapping[str, Any] | None = None  # the checkpoint of the run that algo.source names

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
        algo = {key: value for key, value in self.config["algo"].items() if key not in COURSE}
        return {g: section for g, section in self.config.items() if g in GROUPS and section} | {"algo": algo}

    @cached_property
    def course(self) -> Course:
        own = {field.name: self.config["algo"].get(field.name, field.default) for field in fields(Course)}
        check(own, "algo", Course)
        return Course(**own)  # as it is: a phase is no object yet

    @property
    def trains_on(self) -> list[str]:
        """Ways to draw training tasks, of which the first that the data set offers is taken."""
        named = self.course.trains_on
        return [named] if isinstance(named, str) else list(named)

    @property
    def phases(self) -> dict[int, Mapping[str, Any]]:
        """The keys of `algo` that change at a step, and stay so, by step."""
        return dict(sorted((self.course.phases or {}).items()))

    def check(self) -> None:
        """Refuses keys and values that what is chosen cannot take, before anything is loaded."""
        _ = self.root, self.train, self.val, self.test, self.outer, self.course  # checked as they are read
        sections = {group: section for group, section in self.sections.items() if group != "device"}
        takes_balance = takes(sections["algo"], "algo", "balance")
        if takes_balance and "balance" not in sections:
            raise UserError(f"algo={self.choices['algo']} weighs several losses: name a balance, as balance=equal.")
        if "balance" in sections and not takes_balance:
            raise UserError(
                f"balance={self.choices['balance']}: algo={self.choices['algo']} has no losses to weigh. "
                "Leave balance out."
            )
        takes_source = takes(sections["algo"], "algo", "source")
        if self.course.source is not None and not takes_source:
            raise UserError(
                f"algo.source={self.course.source}: algo={self.choices['algo']} takes over from no run. Leave it out."
            )
        more = [name for name, taken in (("balance", takes_balance), ("source", takes_source)) if taken]
        for group, section in sections.items():
            given = (*GIVEN.get(group, ()), *(more if group == "algo" else []))
            if group == "data" and takes(section, "data", "sources"):
                given = (*given, "sources")
            check(section, group, given=given)
        for name, section in self.sources.items():
            check(section, f"data.keys.{name}", given=())
        for step, changes in self.phases.items():
            check({"_target_": sections["algo"]["_target_"], **changes}, f"algo.phases.{step}")

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
        groups = ("algo", "data", "backbone", *(group for group in OPTIONAL if group in self.sections))
        named: dict[str, Any] = {group: self.choices[group] for group in groups}
        named["seed"] = self.config["seed"]
        for section in ("algo", "data", "optim", "train"):
            for key, value in self.config[section].items():
                if isinstance(value, bool | int | float | str) and not key.startswith("_"):
                    named[f"{section}.{key}"] = value
        return named
