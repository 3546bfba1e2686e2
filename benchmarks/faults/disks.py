"""Disks that are full, broken, read-only or gone while a run writes its folder or the cache."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.checks import Short, completed, refused, same, spoken, whole
from benchmarks.faults.kills import checkpointed
from benchmarks.faults.place import Ended, Place
from benchmarks.faults.variants import unbroken, words

CHOSEN = ("maml", "fomaml", "protonet", "mtl", "sinusoid")  # variants
ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT", "EACCES")
ROOM = 1 << 26  # bytes: enough for any of these runs


@dataclass(frozen=True)
class Trouble:
    """What happens to the folder `where` (of the run, or the cache), in words; how the process is started, what is done
    to it while it runs, and how all is mended."""

    name: str
    how: dict[str, Any]
    strike: Callable[[], object] | None = None
    mend: Callable[[], object] = lambda: None
    gone: bool = False  # nothing is left to go on with


def case(place: Place) -> list[Short]:
    """A disk fault gets one line and exit code 2, spares what was whole, and what it broke off can be gone on with."""
    random = place.random
    variant = random.choice(CHOSEN)
    reference, seconds = unbroken(place, variant)
    disk = place.folder / "disk"
    disk.mkdir()
    in_cache = random.random() < 0.25 and variant != "sinusoid"  # which has no files
    env = {"METARUN_CACHE": str(disk / "cache" if in_cache else place.shared.folder / "cache")}
    run = (place.folder / "in" / "here" if in_cache else disk) / "run"
    command = [*words(variant), f"hydra.run.dir={run}"]
    with trouble_of(place, disk, disk / "cache" if in_cache else run) as trouble:
        place.story.append(f"# {trouble.name}: {disk}")
        session = command
        if not in_cache and random.random() < 0.4:  # the fault comes to a run that is gone on with
            session = interrupted(place, command, run, seconds, env)
        running = place.start(*session, env=env, **trouble.how)
        if trouble.strike:
            running.wait(random.uniform(0.05, seconds))
            place.story.append(f"    {trouble.name} after {running.seconds:.3f} s")
            trouble.strike()
        ended = running.end()
        trouble.mend()
        short = answered(ended, in_cache)
        if trouble.gone:
            return short
        short += whole(run, reference)
        short += completed(place.run(*([f"resume={run}"] if checkpointed(run) else command), env=env))
        return short or same(run, reference)


def interrupted(place: Place, command: list[str], run: Path, seconds: float, env: dict[str, str]) -> list[str]:
    """Stops the run half-way, and returns what to type to go on."""
    running = place.start(*command, env=env)
    if running.wait(seconds / 2) is None:
        running.signal(signal.SIGINT)
    running.end()
    return [f"resume={run}"] if checkpointed(run) else command


def answered(ended: Ended, in_cache: bool) -> list[Short]:
    """One line and exit code 2; or the run is completed, as the fault came too late or hit what it can do without."""
    if ended.code == 0:
        return spoken(ended)
    short = refused(ended)
    if in_cache and not short:
        short = [Short("a run that can do without its cache", ended.lines[0][:300])]
    return short


@contextmanager
def trouble_of(place: Place, disk: Path, where: Path) -> Iterator[Trouble]:
    """One of the troubles that can be had here, for a folder on this disk."""
    random = place.random
    kinds = ["failing", "failing", "forbidden", "moved", "removed", *["full"] * 3 * mountable()]
    if where.parent == disk and where.name == "run":
        kinds.append("short files")  # of this process, wherever they lie
    kind = random.choice(kinds)
    if kind == "full":
        size = 4096 * random.randint(1, 60)
        with mounted(disk, size):
            yield Trouble(f"a disk of {size} bytes", {}, mend=partial(remount, disk, ROOM))
    elif kind == "failing":
        fault = {
            "folder": str(where),
            "error": random.choice(ERRORS),
            "at": random.randint(1, random.choice((12, 90))),
            "lasting": random.random() < 0.6,
        }
        yield Trouble(f"a disk that fails: {fault}", {"fault": fault})
    elif kind == "short files":
        size = random.randint(4000, random.choice((9000, 60000)))  # what it says has to fit
        yield Trouble(f"files of {size} bytes at most", {"file_size": size})
    elif kind == "forbidden":
        mode = random.choice((0o000, 0o500))
        yield Trouble(f"chmod {mode:o}", {}, partial(change, where, mode), partial(change, where, 0o755))
    elif kind == "moved":
        aside = where.with_name("aside")
        yield Trouble("the folder is moved", {}, partial(move, where, aside), partial(back, aside, where))
    else:
        yield Trouble("the folder is removed", {}, partial(shutil.rmtree, where, ignore_errors=True), gone=True)


def change(folder: Path, mode: int) -> None:
    if folder.exists():
        folder.chmod(mode)


def move(folder: Path, aside: Path) -> None:
    if folder.exists():
        folder.rename(aside)


def back(aside: Path, folder: Path) -> None:
    """The folder as it was; what was written in its place meanwhile goes."""
    if aside.exists():
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory, of so many bytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def mountable() -> bool:
    """Whether this process may mount file systems; elsewhere disks fill up by other means."""
    if not sys.platform.startswith("linux"):
        return False
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return done.returncode == 0
