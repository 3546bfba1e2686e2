"""Runs to groups that differ in the seed only, and groups to sections that share one protocol."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from statistics import fmean
from typing import Any

from metarun.report.interval import mean_t
from metarun.report.runs import METRICS, Run

GROUPS = ("algo", "data", "backbone")
# What does not change what is learned or measured. Test episodes are held against each other by their hash.
ASIDE = ("seed", "name", "resume", "parallel", "chunk", "device", "data.root", "test.root", "test.only")
ASIDE_IN = ("device.", "train.log_every")


@dataclass(frozen=True)
class Difference:
    """To the best group of the section, over the seeds that both have."""

    mean: float
    ci95: float
    seeds: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, one for each seed."""

    runs: tuple[Run, ...]
    chosen: dict[str, str]  # what tells it from the others
    difference: Difference | None = None

    @property
    def label(self) -> str:
        """`maml conv4 train.steps=100`."""
        return " ".join(value if key in GROUPS else f"{key}={value}" for key, value in self.chosen.items())

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def test(self) -> tuple[float, float]:
        """Mean and 95% interval: over seeds, or of a single run over its tasks."""
        if len(self.runs) == 1:
            return self.runs[0].test.mean, self.runs[0].test.ci95
        return mean_t([run.test.mean for run in self.runs])

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

    def differs(self, other: Section) -> list[str]:
        """`shots 5 (A: 1)` for each key of the protocol in which it differs from another section."""
        keys = dict.fromkeys([*self.protocol, *other.protocol])
        mine, theirs = self.protocol, other.protocol
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


def compare(runs: Iterable[Run]) -> Comparison:
    """Groups, sections and differences of finished runs."""
    by_identity: dict[Any, dict[int, Run]] = {}
    older = []
    for run in sorted(runs, key=lambda run: (run.written, str(run.folder))):
        seeds = by_identity.setdefault(_identity(run), {})
        if run.seed in seeds:
            older.append(seeds[run.seed])  # the same seed twice is no second sample
        seeds[run.seed] = run
    members = [tuple(run for _, run in sorted(seeds.items())) for seeds in by_identity.values()]
    groups = [Group(runs, chosen) for runs, chosen in zip(members, _chosen([m[0] for m in members]), strict=True)]
    by_protocol: dict[Any, list[Group]] = {}
    for group in groups:
        by_protocol.setdefault(tuple(_protocol(group.runs[0]).items()), []).append(group)
    largest_first = sorted(by_protocol.items(), key=lambda item: (-len(item[1]), str(item[0])))
    sections = [
        Section(_letter(number), dict(protocol), _ranked(groups))
        for number, (protocol, groups) in enumerate(largest_first)
    ]
    return Comparison(tuple(sections), tuple(older))


def _identity(run: Run) -> tuple[Any, ...]:
    """What runs of one group share: everything but the seed."""
    kept = tuple(sorted((key, value) for key, value in run.settings.items() if _counts(key)))
    return tuple(run.names.values()), kept, tuple(_protocol(run).items()), run.protocol.get("adapt_steps")


def _protocol(run: Run) -> dict[str, str]:
    """What must be equal for numbers to be comparable. Adaptation steps are a method's own choice, shown in a column."""
    rest = {key: str(run.protocol[key]) for key in sorted(run.protocol) if key not in ("adapt_steps", "test_data")}
    first = {key: rest.pop(key) for key in ("ways", "shots", "queries") if key in rest}
    data = str(run.protocol.get("test_data") or run.names["data"])
    return {"data": data, "metric": run.metric, **first, "test tasks": str(run.test.tasks), **rest}


def _counts(key: str) -> bool:
    return key not in ASIDE and not key.startswith(ASIDE_IN)


def _chosen(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What names each group: the algorithm, and of the rest what was typed and differs."""
    typed = sorted({key for run in runs for key in run.typed if _counts(key) and key not in GROUPS})
    keys = _differing(runs, typed)
    names = [name for name in GROUPS if name == "algo" or len({run.names[name] for run in runs}) > 1]
    chosen = [{name: run.names[name] for name in names} | _pick(run, keys) for run in runs]
    # The same words typed, yet another config: the defaults have changed, or an own conf/ was there.
    marks = [(tuple(words.items()), tuple(_protocol(run).items())) for words, run in zip(chosen, runs, strict=True)]
    count = Counter(marks)
    for number, mark in enumerate(marks):
        if count[mark] > 1:
            twins = [run for run, other in zip(runs, marks, strict=True) if other == mark]
            chosen[number] |= _pick(runs[number], _differing(twins, sorted(filter(_counts, runs[number].settings))))
    return chosen


def _differing(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _pick(run: Run, keys: Iterable[str]) -> dict[str, str]:
    return {key: run.settings[key] for key in keys if key in run.settings}


def _ranked(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Best first, NaN last, each with its difference to the best."""
    sign = -1 if METRICS[groups[0].metric] else 1

    def place(group: Group) -> tuple[bool, float]:
        mean = group.test[0]
        return math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    best, *rest = sorted(groups, key=place)
    return best, *(replace(group, difference=_difference(group, best)) for group in rest)


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
