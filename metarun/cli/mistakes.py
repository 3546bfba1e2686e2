"""What is told when a run ends early: one line with the remedy for a mistake, a traceback for a bug."""

from __future__ import annotations

import errno
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from metarun.cli import CONF
from metarun.construct import nearest
from metarun.engine.ranks import Lost, local_rank
from metarun.errors import UserError, one_line

MISTAKE, BUG = 2, 1  # exit codes
DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT, errno.EEXIST),
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE),
}
NO_MEMORY = re.compile("not enough memory|(can't|cannot) allocate memory|out of memory|calculation overflowed", re.I)
COMPOSERS = ("hydra", "omegaconf")
LONGEST = 300  # letters of what others say
ENDLESS = re.compile(rf"\S{{{LONGEST},}}")  # a word that nobody reads to its end


def tell(error: Exception, prefix: str = "") -> int:
    """Prints what went wrong and returns the exit code."""
    line = explain(error)
    if line is None:
        traceback.print_exception(error)
        print(f"metarun: {prefix}{type(error).__name__}: {error} (a bug: its traceback is above)", file=sys.stderr)
        return BUG
    print(f"metarun: {prefix}{ENDLESS.sub(_cut, one_line(line))}", file=sys.stderr)
    return MISTAKE


def _cut(endless: re.Match[str]) -> str:
    return f"{endless[0][:LONGEST]}..."


def tell_stopped(stopped: KeyboardInterrupt, sweep: bool) -> int:
    """Says how to go on, and returns the exit code of a process that a signal ended."""
    number = getattr(stopped, "signal", signal.SIGINT)
    folder = getattr(stopped, "folder", None)
    rest = "; the jobs after it did not run" if folder and sweep else ""
    sender = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    if sender == "SIGTERM" and local_rank() is not None and getattr(stopped, "at_once", True):
        sender += ", which torchrun also sends when another rank has ended"
    print(f"metarun: stopped by {sender}. {_to_go_on(folder)}{rest}", file=sys.stderr)
    return 128 + number


def _to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "Nothing was saved yet."
    here = Path.cwd()
    place = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return f"To go on: metarun {shlex.quote(f'resume={place}')}"


def explain(error: BaseException) -> str | None:
    """One line for a user's mistake, None for a bug."""
    if told := _user_error(error):
        return f"{told} {_to_go_on(told.folder)}" if isinstance(told, Lost) else str(told)
    if isinstance(error, yaml.YAMLError):
        return f"a YAML file cannot be read: {error}. Mend it."
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException | HydraException):
        return _composition(error)
    return _of_system(error) or (_composition(error) if _in_hydra(error) else None)


def _of_system(error: BaseException) -> str | None:
    """What the machine has no room or no right for."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        said = f" ({one_line(error)[:LONGEST]})" if str(error) else ""
        return f"there is not enough memory{said}. Lower what sets sizes: tasks, shots, queries or the backbone."
    if isinstance(error, BrokenPipeError):
        return "who read the output went away, so the run ended. Send the output to a file, or let it be read."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:LONGEST]}... is a longer path than the system takes. Shorten it."
    if isinstance(error, OSError) and (error.errno in DISK or _of_mkdir(error)):
        remedy = "Free some space, or name another folder with hydra.run.dir=DIR."
        return f"cannot write {error.filename or 'a file'}: {error.strerror}. {remedy}"
    return None


def _in_hydra(error: BaseException) -> bool:
    """Whether what was typed was more than Hydra foresaw: its own code raised this, with none of ours beneath."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    rooms = [room for room in (name.partition(".")[0] for name in modules) if room in (*COMPOSERS, "metarun")]
    return bool(rooms) and rooms[-1] in COMPOSERS


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError that this error is or was caused by: Hydra wraps what its resolvers raise."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _of_mkdir(error: OSError) -> bool:
    """Whether making a folder raised it: /proc and the like answer that with "no such file"."""
    return traceback.extract_tb(error.__traceback__)[-1].name == "mkdir"


def _composition(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        what = f"{group}={choice}: there is no such {group}.{nearest(choice, error.options or [])}"
        return what if group else f"there is no {choice}.yaml. Mend --config-name, or the `defaults` that name it."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read. A value with brackets, commas or = in it wants quotes: 'key=\"a,b\"'."
    return _of_key(_said(error))


def _of_key(text: str) -> str:
    """Hydra's words on a key or its value in ours."""
    if found := re.search(r"Could not (?:override|delete|append) '([^']+)'", text):
        key = found[1].split("@")[0]
        known = _keys()
        if key in known:
            return f"{key} is a key of other choices than these. Leave it out, or choose another {key.split('.')[0]}."
        return f"{key} is no key of the config.{nearest(key, known)}"
    if found := re.match(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]} is several values. Add -m to run each, or write a list in brackets."
    return f"the config cannot be composed: {text[:LONGEST]}. Mend what was typed, or the YAML file that says so."


def _said(error: BaseException | None) -> str:
    """What an error says, and what caused it: Hydra's own often name only the place."""
    said = []
    while error is not None:
        said.append(" ".join(str(error).split()).rstrip("."))
        error = error.__cause__
    return ": ".join(dict.fromkeys(filter(None, said)))


def _keys() -> list[str]:
    """All keys that the defaults and each choice of each group offer."""
    keys = {group.name for group in CONF.iterdir() if group.is_dir()}
    for file in CONF.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        top = file.parent == CONF or "@package _global_" in text
        keys |= set(_flat(yaml.safe_load(text) or {}, "" if top else f"{file.parent.name}."))
    return sorted(key for key in keys if not key.startswith(("hydra.", "defaults")))


def _flat(section: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}"
