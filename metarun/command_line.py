"""What the user typed, made into what Hydra reads: resuming, experiments, a conf folder of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from metarun.types import UserError

OF_ONE_SESSION = ("resume", "test.only")  # what a resumed run does not inherit


def rewritten(arguments: list[str], conf: Path) -> list[str]:
    """The arguments for Hydra."""
    arguments = [re.sub(r"^\+experiment=", "experiment=", a) for a in arguments]
    own = Path("conf")
    if own.is_dir() and own.resolve() != conf.resolve() and not _has(arguments, "--config-dir", "-cd"):
        arguments = [*arguments, "--config-dir", str(own.resolve())]
    resumed = next((a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("resume=")), None)
    if resumed in (None, "", "null"):
        return arguments
    if _has(arguments, "-m", "--multirun"):
        raise UserError(f"resume={resumed} goes on with one run and cannot be swept. Leave out -m.")
    return _resuming(arguments, Path(str(resumed)))


def added(overrides: Iterable[str], folder: Path) -> list[str]:
    """What was typed beside the overrides that the run in `folder` was started with."""
    file = folder / ".hydra" / "overrides.yaml"
    before = yaml.safe_load(file.read_text()) if file.exists() else []
    return [o for o in overrides if o not in before and _key(o) not in OF_ONE_SESSION]


def label(text: str) -> str:
    """A text that can be part of a file's name."""
    return re.sub(r"[^\w.,=+-]+", "-", str(text))[:120]


def _resuming(arguments: list[str], folder: Path) -> list[str]:
    """The run's own overrides come first, so that what is typed now wins; its directory stays."""
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"resume={folder} is no run: there is no {file}. Give the directory that a run named.")
    typed = [a for a in arguments if not a.startswith("resume=")]
    keys = {_key(a) for a in typed}
    before = [o for o in yaml.safe_load(file.read_text()) or [] if _key(o) not in keys | set(OF_ONE_SESSION)]
    place = str(folder.resolve())
    fixed = [f"resume='{place}'", f"hydra.run.dir='{place}'"]
    if "test.only=true" in [a.lower() for a in typed]:
        fixed.append("hydra.output_subdir=null")  # a repeated test leaves the run's config as it was
    return [*before, *typed, *fixed]


def _has(arguments: Iterable[str], *flags: str) -> bool:
    return any(a.partition("=")[0] in flags for a in arguments)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
