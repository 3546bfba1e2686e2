"""Wrong command lines: every key of the config with values of every kind, misspelt keys, odd flags, wrong choices."""

from __future__ import annotations

import math
import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

from benchmarks.faults.checks import Short, refused, result, runs, spoken
from benchmarks.faults.place import Ended, Place
from benchmarks.faults.values import ABSURD, ASKING, FLAGS, NOT_FINITE, misspelt, spelled, value
from benchmarks.faults.variants import CONV, GLYPHS, MLP, must
from metarun.cli import CONF, VERBS

SECONDS = 20.0
SMALL = (
    "train.steps=2 train.tasks=2 train.max_time=4 val.tasks=2 test.tasks=2 test.adapt_steps=1 parallel=vmap device=cpu"
)
DATA = {"glyphs": GLYPHS, "sinusoid": "data=sinusoid", "folder": "data=folder data.size=16 data.ways=2"}
BACKBONES = {
    "glyphs": (CONV, MLP, "backbone=conv2 backbone.channels=[4,4] backbone.hidden=[8]", "backbone=conv4_pool"),
    "folder": (CONV, MLP, "backbone=resnet12 backbone.channels=[4,4,4,4]"),
    "sinusoid": ("backbone=mlp backbone.hidden=[8]",),
}
GRADIENT = ("maml", "metasgd", "mamlpp", "reptile")  # algorithms for regression
SLOW = "compile"  # takes a minute wherever it is allowed
MUCH = re.compile(  # keys by which one may ask for more than SECONDS of work: Ctrl-C has to end it
    r"\.(steps|tasks|adapt_steps|inner_steps|shots|queries|alphabets|characters|drawings|max_time)$"
)
GROUPS = ("algo", "data", "backbone", "optim", "schedule", "device", "balance")


class Typed(NamedTuple):
    """A command line in two parts, and whether it has to be refused."""

    good: list[str]
    wrong: list[str]
    must_fail: bool

    @property
    def words(self) -> list[str]:
        """The good ones that the wrong ones do not replace, then these."""
        keys = {_key(word) for word in self.wrong}
        return [*(word for word in self.good if _key(word) not in keys), *self.wrong]


def case(place: Place) -> list[Short]:
    """A wrong command line is refused with one line and leaves nothing; one that is not so wrong is a completed run."""
    typed = drawn(place)
    root = place.shared.once("photos", _photos) if "data=folder" in typed.good else place.folder / "no data"
    running = place.start(*typed.words, env={"METARUN_DATA": str(root)})
    if running.wait(SECONDS) is None and any(MUCH.search(_key(word)) for word in typed.wrong):
        running.signal(signal.SIGINT)
        ended = running.end(SECONDS)
        return spoken(ended) + ([] if ended.code in (0, 130) else [Short("exit code 130", str(ended.code))])
    return judged(running.end(0.1), typed, place)


def judged(ended: Ended, typed: Typed, place: Place) -> list[Short]:
    """What fell short of an answer."""
    sweep = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*typed.wrong})
    if ended.code == 0:
        short = spoken(ended)
        if typed.must_fail:
            short.append(Short("exit code 2", "exit code 0"))
        if not short and not ASKING & {word.partition("=")[0] for word in typed.wrong}:
            short = finished(place.folder)
        return short
    if sweep:  # a line for each job that failed, and one for all
        return spoken(ended) + ([] if ended.code == 2 or ended.stopped else [Short("exit code 2", str(ended.code))])
    return refused(ended) or left(place)


def finished(folder: Path) -> list[Short]:
    """Each run below the folder is completed, and what it measured is a number."""
    short = [] if (found := runs(folder)) else [Short("a run, or exit code 2", "exit code 0 and nothing")]
    for run in found:
        record = result(run)
        if record.get("status") != "completed":
            short.append(Short("a completed run", f"status {record.get('status')}"))
            continue
        numbers = [*_numbers(record["test"]), *_numbers(record["val"])]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            short.append(Short("scores that are numbers, or exit code 2", str(record["test"])[:200]))
    return short


def left(place: Place) -> list[Short]:
    """Nothing is left of a command that was refused, unless training had begun."""
    for run in runs(place.folder):
        if not result(run).get("steps"):
            return [Short("nothing that is left of a command that was refused", str(run.relative_to(place.folder)))]
    ours = {place.folder / "in", place.folder / "in" / "here"}
    rest = [path for path in [*place.folder.glob("*"), *place.folder.glob("in/**/*")] if path not in ours]
    rest = [path for path in rest if path.name != "home" and path.suffix not in (".out", ".err")]
    if rest and not runs(place.folder):
        return [Short("nothing that is left of a command that was refused", str(rest[0].relative_to(place.folder)))]
    return []


def drawn(place: Place) -> Typed:
    """A command line of small runs with something wrong in it."""
    random = place.random
    good = combination(random)
    dice = random.random()
    if dice < 0.16:
        wrong = shlex.split(random.choice(FLAGS))
        return Typed([] if wrong[0] in VERBS else good, wrong, must_fail=False)
    if dice < 0.2:
        return Typed(good, random.choice(ABSURD).split(), must_fail=True)
    if dice < 0.26:
        group = random.choice(GROUPS)
        names = sorted(file.stem for other in GROUPS for file in (CONF / other).glob("*.yaml"))
        others = [name for name in names if not (CONF / group / f"{name}.yaml").exists()]
        wrong = [f"{group}={random.choice([*others, '', '[]', '{a:1}', '5', 'true', '../x', f'../{group}/x'])}"]
        return Typed(good, wrong, must_fail=group != "balance")
    config = keys(place, good)
    names = sorted(name for name in config if name != SLOW)
    if dice < 0.34:
        key = random.choice(names)
        bad = misspelt(random, key)
        sign = random.choice(("", "", "", "+", "++", "~"))
        wrong = [f"{sign}{bad}" + ("" if sign == "~" else f"={spelled(config[key])}")]
        return Typed(good, wrong, must_fail=bad not in config)
    wrong, must_fail = [], False
    for key in random.sample(names, random.choice((1, 1, 1, 1, 2))):
        text = value(random, key, list(config.values()))
        is_number = isinstance(config[key], int | float) and not isinstance(config[key], bool)
        must_fail = must_fail or (is_number and text in NOT_FINITE)
        wrong.append(f"{key}={text}")
    return Typed(good, wrong, must_fail)


def combination(random: Random) -> list[str]:
    """A small run that is in order, but for what is done to it."""
    data = random.choice(("glyphs", "glyphs", "glyphs", "sinusoid", "folder"))
    algos = GRADIENT if data == "sinusoid" else sorted(file.stem for file in (CONF / "algo").glob("*.yaml"))
    algo = random.choice(algos)
    more = [f"optim={random.choice(('adam', 'sgd', 'adamw', 'rmsprop', 'sam'))}"] if random.random() < 0.4 else []
    more += [f"schedule={random.choice(('constant', 'linear', 'step'))}"] if random.random() < 0.3 else []
    if algo == "mtl" and random.random() < 0.5:
        more.append(f"balance={random.choice(('famo', 'pcgrad'))}")
    if algo in ("mtl", "transfer"):
        more.append("train.shots=2")
    words = f"algo={algo} {DATA[data]} {random.choice(BACKBONES[data])} {SMALL}".split()
    return [*words, *more]


def keys(place: Place, good: list[str]) -> dict[str, Any]:
    """Every dotted key of the config that these words compose, as `--cfg job` prints it, with its value."""

    def make(folder: Path) -> None:
        ended = must(place.elsewhere(folder).run(*good, "--cfg", "job", cwd=folder))
        (folder / "config.yaml").write_text(ended.out)

    chosen = sorted(word for word in good if "." not in word)
    folder = place.shared.once(f"config {' '.join(chosen)}", make)
    return dict(_flat(yaml.safe_load((folder / "config.yaml").read_text()), ""))


def _flat(section: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in section.items():
        yield f"{prefix}{key}", inner
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")


def _numbers(section: Any) -> Iterator[Any]:
    """The means of all scores."""
    if isinstance(section, Mapping):
        for name, inner in section.items():
            if name == "mean":
                yield inner
            else:
                yield from _numbers(inner)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _photos(folder: Path) -> None:
    from benchmarks.faults.photos import good

    good(folder)
