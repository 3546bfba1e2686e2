"""Runs that are killed at random moments and gone on with: SIGKILL, SIGTERM, Ctrl-C once and twice."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

from benchmarks.faults.checks import Short, completed, refused, result, same, spoken, whole
from benchmarks.faults.place import FRESH, Ended, Place, Running
from benchmarks.faults.variants import VARIANTS, unbroken, words

IMPORTS = 4.0  # seconds of a new interpreter's start, more or less
SOON, STARTED = 0.02, 0.5  # seconds until a fork, or a new interpreter, has come to metarun's own code
TWICE = "twice"
HOW = (signal.SIGKILL.name, signal.SIGTERM.name, signal.SIGINT.name, TWICE)


def case(place: Place) -> list[Short]:
    """A run killed one to three times ends as an unbroken one."""
    random = place.random
    variant = random.choice(sorted(VARIANTS))
    reference, seconds = unbroken(place, variant)
    command = words(variant) + (["hydra.run.dir=run"] if random.random() < 0.5 else [])
    fresh = random.random() < 0.1
    short: list[Short] = []
    session = command
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        running = place.start(*session, program=FRESH if fresh else ("metarun",))
        how, earliest = random.choice(HOW), STARTED if fresh else SOON
        kill(running, how, random.uniform(earliest, seconds * 1.1 + fresh * IMPORTS), random)
        short += after(running.end(), how, place, reference)
        told, session = going_on(place, command)
        short += told
    short += completed(place.run(*session))
    if not short:
        short = same(newest(place), reference)
    return short


def kill(running: Running, how: str, delay: float, random: Random) -> None:
    """Signals the process after a while, if it is still there."""
    if running.wait(delay) is not None:
        return
    running.signal(signal.SIGINT if how == TWICE else signal.Signals[how])
    if how == TWICE and running.wait(random.uniform(0.0, 0.5)) is None:
        running.signal(signal.SIGINT)


def after(ended: Ended, how: str, place: Place, reference: Path) -> list[Short]:
    """What a killed process said, and what it left."""
    number = signal.SIGINT if how == TWICE else signal.Signals[how]
    wanted = -number if how == signal.SIGKILL.name else 128 + number
    short = spoken(ended) if ended.code != -signal.SIGKILL or ended.stopped else []
    over = "stopped by" in ended.err or any(result(run).get("status") == "completed" for run in found(place))
    if (
        ended.code not in (0, wanted, *[-number] * over) and not short
    ):  # at the interpreter's own end it is deaf no more
        short.append(Short(f"exit code {wanted} after {how}", f"exit code {ended.code}"))
    if ended.code > 0 and not ended.lines and not short:
        short.append(Short("a line that says how to go on", "nothing on standard error"))
    for run in found(place):
        short += whole(run, reference)
    return short


def going_on(place: Place, command: list[str]) -> tuple[list[Short], list[str]]:
    """What fell short of an answer, and what to type to go on: resume where there is a checkpoint, else the same."""
    runs = found(place)
    if begun := [run for run in runs if checkpointed(run)]:
        return [], [f"resume={begun[0].relative_to(here(place))}"]
    if not runs or place.random.random() < 0.7:
        return [], command
    return refused(place.run(f"resume={runs[0]}")), command


def here(place: Place) -> Path:
    """Where a case's commands are typed."""
    return place.folder / "in" / "here"


def found(place: Place) -> list[Path]:
    """Folders of runs."""
    return sorted([*here(place).glob("outputs/*/*"), *here(place).glob("run")])


def checkpointed(run: Path) -> bool:
    return any((run / "checkpoints" / name).exists() for name in ("last.pt", "best.pt"))


def newest(place: Place) -> Path:
    """The run that was gone on with."""
    runs = found(place)
    return next((run for run in runs if checkpointed(run)), runs[-1])
