"""Runs to groups that differ in the seed only, and groups to sections that share one protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from metarun.metrics import Score, metric, telling
from metarun.report.improvement import improvement, is_single
from metarun.report.interval import mean_t
from metarun.report.runs import Run

Members = tuple[Run, ...]  # of one group, by seed
GROUPS = ("algo", "data", "backbone")
UNKNOWN = Score(math.nan, math.nan, 0)
TASK = ("ways", "shots", "queries", "test tasks")


@dataclass(frozen=True)
class Difference:
    """How far a group's metric lies from that of the best group of its section, over the seeds that both have."""

    mean: float
    ci95: float
    seeds: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, one for each seed."""

    runs: Members
    chosen: dict[str, str]  # what tells it from the others
    difference: Difference | None = None
    gain: tuple[float, float] = (math.nan, math.nan)  # Δm over single-task training, and its interval

    @property
    def label(self) -> str:
        """`maml conv4 train.steps=100`."""
        return " ".join(value if key in GROUPS else f"{key}={value}" for key, value in self.chosen.items())

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def trained(self) -> str:
        """The data set that its runs were trained on, and validated on."""
        return self.runs[0].names["data"]

    @property
    def test(self) -> tuple[float, float]:
        """Mean and 95% interval of the metric that the runs are judged by."""
        return self.score(self.metric)

    def score(self, name: str) -> tuple[float, float]:
        """Mean and 95% interval: over seeds, or of a single run over its tasks; NaN where a run lacks the metric."""
        found = [run.scores.get(name, UNKNOWN) for run in self.runs]
        return (found[0].mean, found[0].ci95) if len(found) == 1 else mean_t([score.mean for score in found])

    def mean(self, value: Callable[[Run], float | None]) -> float:
        """The mean over runs of what all of them have, else NaN."""
        values = [v for run in self.runs if (v := value(run)) is not None]
        return fmean(values) if len(values) == len(self.runs) else math.nan


@dataclass(frozen=True)
class Section:
    """Groups that were measured under one protocol, best first."""

    letter: str
    protocol: dict[str, str]
    groups: tuple[Group, ...]

    @property
    def task(self) -> str:
        """`omniglot, 5-way 1-shot, 600 test tasks`."""
        return f"{self.task_of(self.protocol['data'])}, {self.protocol['test tasks']} test tasks"

    def task_of(self, data: str) -> str:
        """`glyphs, 5-way 1-shot`: the same kind of task of a data set, as a validation has it."""
        ways = f"{self.protocol['ways']}-way" if self.protocol.get("ways", "1") != "1" else ""
        shots = f"{self.protocol['shots']}-shot" if "shots" in self.protocol else ""
        return ", ".join(filter(None, (data, " ".join(filter(None, (ways, shots))))))

    def differs(self, other: Section) -> list[str]:
        """`shots 5 (A: 1)` for each key of the protocol in which it differs from another section."""
        mine, theirs = self.protocol, other.protocol
        keys = dict.fromkeys([*mine, *theirs])
        if mine["data"] != theirs["data"]:  # then its splits and episodes do anyway
            keys = dict.fromkeys(["data", "metric", *TASK, "norm"])
        return [
            f"{key} {_short(mine.get(key))} ({other.letter}: {_short(theirs.get(key))})"
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]


@dataclass(frozen=True)
class Comparison:
    """All that was found out, the section with the most groups first; `older` runs gave way to a repetition."""

    sections: tuple[Section, ...]
    older: tuple[Run, ...]

    @property
    def groups(self) -> list[Group]:
        return [group for section in self.sections for group in section.groups]

    @property
    def heads(self) -> list[str]:
        """The metrics of single heads that say more than what all runs are judged by."""
        names = telling(self._names)
        return [name for name in names if "/" in name and {name} != {group.metric for group in self.groups}]

    @property
    def aside(self) -> list[str]:
        """The metrics that tables leave out."""
        return [name for name in self._names if metric(name).aside]

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for group in self.groups for run in group.runs for name in run.scores))


def compare(runs: Iterable[Run]) -> Comparison:
    """Groups, sections and differences of finished runs."""
    by_identity: dict[Any, dict[int, Run]] = {}
    older = []
    for run in sorted(runs, key=lambda run: (run.written, str(run.folder))):
        seeds = by_identity.setdefault(_identity(run), {})
        if run.seed in seeds:
            older.append(seeds[run.seed])  # the same seed twice is no second sample
        seeds[run.seed] = run
    by_protocol: dict[Any, list[Members]] = {}
    for seeds in by_identity.values():
        members = tuple(run for _, run in sorted(seeds.items()))
        by_protocol.setdefault(tuple(_protocol(members[0]).items()), []).append(members)
    names = [
        name for name in GROUPS if name == "algo" or len({m[0].names[name] for m in chain(*by_protocol.values())}) > 1
    ]
    largest_first = sorted(by_protocol.items(), key=lambda item: (-len(item[1]), str(item[0])))
    sections = [
        Section(_letter(number), dict(protocol), _ranked(list(map(Group, groups, _chosen(groups, names)))))
        for number, (protocol, groups) in enumerate(largest_first)
    ]
    return Comparison(tuple(sections), tuple(older))


def _identity(run: Run) -> tuple[Any, ...]:
    """What runs of one group share: everything but the seed."""
    return (
        tuple(run.names.values()),
        tuple(sorted(run.settings.items())),
        tuple(_protocol(run).items()),
        run.protocol.get("adapt_steps"),
    )


def _protocol(run: Run) -> dict[str, str]:
    """What must be equal for numbers to be comparable; adaptation steps are a method's own choice."""
    rest = {key: str(run.protocol[key]) for key in sorted(run.protocol) if key not in ("adapt_steps", "test_data")}
    rest["test tasks"] = str(run.test.tasks)
    task = {key: rest.pop(key) for key in TASK if key in rest}
    return {"data": run.tested, "metric": run.metric, **task, **rest}


def _chosen(groups: Sequence[Members], names: Sequence[str]) -> list[dict[str, str]]:
    """What names each group of a section: its parts, what was typed for it and differs from another group, and silent
    choices in which it differs from another of its algorithm."""
    firsts = [runs[0] for runs in groups]
    keys = _differing(firsts, {key for runs in groups for run in runs for key in run.typed if key not in GROUPS})
    chosen = []
    for runs in groups:
        typed = {key for run in runs for key in run.typed}
        chosen.append(_names(runs[0], names) | _pick(runs[0], filter(typed.__contains__, keys)))
    for pairs, run in zip(chosen, firsts, strict=True):
        alike = [other for other in firsts if other.names["algo"] == run.names["algo"]]
        pairs.update(_pick(run, _differing(alike, {key for other in alike for key in other.silent})))
    # The same words typed, yet another config: an experiment, other defaults, a conf/ of one's own.
    words = [tuple(pairs.items()) for pairs in chosen]
    for word in {word for word in words if words.count(word) > 1}:
        twins = [number for number, other in enumerate(words) if other == word]
        own = _differing([firsts[number] for number in twins], {key for n in twins for key in firsts[n].settings})
        for number in twins:
            chosen[number] |= _pick(firsts[number], own)
    return chosen


def _names(run: Run, names: Iterable[str]) -> dict[str, str]:
    """Its parts that are to be named; the data that it was trained on also where its test is on other data."""
    elsewhere = run.tested != run.names["data"]
    parts = run.names | ({"data": f"trained on {run.names['data']}"} if elsewhere else {})
    return {name: parts[name] for name in GROUPS if name in names or (name == "data" and elsewhere)}


def _differing(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    return [key for key in sorted(keys) if len({run.settings.get(key) for run in runs}) > 1]


def _pick(run: Run, keys: Iterable[str]) -> dict[str, str]:
    return {key: run.settings[key] for key in keys if key in run.settings}


def _ranked(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Best first, NaN last, each with its difference to the best."""
    sign = metric(groups[0].metric).sign

    def place(group: Group) -> tuple[bool, float]:
        mean = group.test[0]
        return math.isnan(mean), 0.0 if math.isnan(mean) else -sign * mean

    best, *rest = sorted(groups, key=place)
    return _with_gains((best, *(replace(group, difference=_difference(group, best)) for group in rest)))


def _with_gains(ranked: tuple[Group, ...]) -> tuple[Group, ...]:
    """Each held against the best single-task training on the same backbone, if there is any."""
    single: dict[str, Members] = {}
    for group in ranked:
        if is_single(group.runs[0]):
            single.setdefault(group.runs[0].names["backbone"], group.runs)
    baselines = [single.get(group.runs[0].names["backbone"]) for group in ranked]
    return tuple(
        replace(group, gain=improvement(group.runs, alone)) if alone else group
        for group, alone in zip(ranked, baselines, strict=True)
    )


def _difference(group: Group, best: Group) -> Difference | None:
    scores = {run.seed: run.test.mean for run in best.runs}
    pairs = [run.test.mean - scores[run.seed] for run in group.runs if run.seed in scores]
    return Difference(*mean_t(pairs), len(pairs)) if len(pairs) > 1 else None


def _short(value: str | None) -> str:
    return "-" if value is None else value.removeprefix("sha256:")[:8] if value.startswith("sha256:") else value


def _letter(number: int) -> str:
    """A ... Z, AA, AB ..."""
    rounds, rest = divmod(number, len(ascii_uppercase))
    return (_letter(rounds - 1) if rounds else "") + ascii_uppercase[rest]
