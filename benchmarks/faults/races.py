"""Processes that work on one run folder at a time, and jobs that fill one empty cache together."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

from benchmarks.faults.checks import Short, completed, refused, same, spoken, whole
from benchmarks.faults.kills import checkpointed, here
from benchmarks.faults.place import Ended, Place, Running
from benchmarks.faults.variants import GLYPHS, MLP, SHORT, must, unbroken, words

CHOSEN = ("fomaml", "protonet", "mtl", "sinusoid")  # variants
KINDS = ("resume + resume", "start + start", "start + resume", "test + resume", "killed + resume", "cache", "cache")


def case(place: Place) -> list[Short]:
    """One of several processes goes on, the others wait or say who is there; nothing is lost or done twice."""
    kind = place.random.choice(KINDS)
    place.story.append(f"# {kind}")
    if kind == "cache":
        return one_cache(place)
    reference, seconds = unbroken(place, variant := place.random.choice(CHOSEN))
    run, command = here(place) / "run", [*words(variant), "hydra.run.dir=run"]
    if not kind.startswith("start"):
        half_way(place, variant, command, seconds, run)
    resume, test = ["resume=run"], ["resume=run", "test.only=true", "name=again"]
    first = {"start": command, "test": test}.get(kind.partition(" ")[0], resume)
    others = command if kind == "start + start" else resume
    racers = [place.start(*first)]
    for _ in range(place.random.choice((1, 1, 2, 3))):
        racers[0].wait(place.random.choice((0.0, place.random.uniform(0, 0.05), place.random.uniform(0, seconds))))
        if kind == "killed + resume" and len(racers) == 1:
            racers[0].signal(signal.SIGKILL)
            racers[0].end()
        racers.append(place.start(*others))
    short = told(racers, kind)
    short += whole(run, reference)
    if not short:
        short = completed(place.run(*(resume if checkpointed(run) else command)))
    return short or same(run, reference)


def half_way(place: Place, variant: str, command: list[str], seconds: float, run: Path) -> None:
    """Puts a run with a checkpoint, stopped on its way, where the case begins."""

    def make(folder: Path) -> None:
        for part in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            running = place.elsewhere(folder).start(*command, cwd=folder)
            if running.wait(part * seconds) is None:
                running.signal(signal.SIGINT)
            running.end()
            if checkpointed(folder / "run") and (folder / "run" / "checkpoints" / "best.pt").exists():
                return
            shutil.rmtree(folder / "run", ignore_errors=True)
        raise RuntimeError("no run could be stopped between its first checkpoint and its end")

    shutil.copytree(place.shared.once(f"half-way {variant}", make) / "run", run)


def told(racers: list[Running], kind: str) -> list[Short]:
    """At least one is completed; each other one was refused with a line that names a process that was there."""
    ended = [racer.end() for racer in racers]
    rest = [one for one in ended if one.code != -signal.SIGKILL or one.stopped]
    short: list[Short] = []
    if not any(one.code == 0 for one in rest):
        codes = ", ".join(str(one.code) for one in rest)
        short.append(Short("one process that goes on", f"exit codes {codes}: {_last(rest)}"))
    for one in rest:
        short += spoken(one) if one.code == 0 else refused_by_holder(one, racers, kind)
    return short


def refused_by_holder(one: Ended, racers: list[Running], kind: str) -> list[Short]:
    if short := refused(one):
        return short
    line = one.lines[0]
    named = any(re.search(rf"\b{racer.pid}\b", line) for racer in racers)
    before = kind.startswith("start") and re.search("holds a run|is no run|no checkpoint", line)  # not begun, or over
    if named or before:
        return []
    return [Short("a line that names the process that holds the run", line[:300])]


def one_cache(place: Place) -> list[Short]:
    """Jobs that start together on an empty cache are all completed alike, and one of them decodes."""
    jobs = place.random.choice((2, 3, 4))
    data = place.random.choice(("folder", "glyphs"))
    photos = place.shared.once("photos for a cache", _photos)
    root = ["data=folder", f"data.root={photos}", "data.size=12"]
    glyphs = [*GLYPHS.split(), "data.seed=7"]
    command = ["algo=maml", "data.ways=2", *MLP.split(), *SHORT.split(), "train.tasks=2", "train.steps=4"]
    command += root if data == "folder" else glyphs

    def make(folder: Path) -> None:
        cache = {"METARUN_CACHE": str(folder / "cache")}
        must(place.elsewhere(folder).run(*command, "hydra.run.dir=run", cwd=folder, env=cache))

    reference = place.shared.once(f"alone with a cache of {data}", make) / "run"
    cache = place.folder / "cache"
    racers = [place.start(*command, f"hydra.run.dir=run{n}", env={"METARUN_CACHE": str(cache)}) for n in range(jobs)]
    short = [fault for racer in racers for fault in completed(racer.end())]
    folders = [here(place) / f"run{n}" for n in range(jobs)]
    if not short:
        short = [fault for run in folders for fault in same(run, reference)]
    logs = [run / "run.log" for run in folders]
    decoded = sum("Decoding" in log.read_text() for log in logs if log.exists())
    if decoded > 1:
        short.append(Short("one job that decodes", f"{decoded} that do"))
    left = [path.name for path in cache.glob(".*") if "lock" not in path.name]
    return short + ([Short("a cache without remains", ", ".join(left))] if left else [])


def _photos(folder: Path) -> None:
    from benchmarks.faults.photos import good

    good(folder, classes=8, images=40)


def _last(ended: list[Ended]) -> str:
    lines = [line for one in ended for line in one.lines[-1:]]
    return " / ".join(lines)[:300]
