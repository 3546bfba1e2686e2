"""What a mistake is answered with: one line that names the key and the remedy; a bug keeps its traceback."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.construct import nearest
from metarun.types import UserError

USERS = 2  # exit code of a mistake that the user can mend
DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT}


def tell(error: Exception, conf: Path, prefix: str = "") -> int:
    """Prints what went wrong and returns the exit code."""
    line = explain(error, conf)
    if line is None:
        traceback.print_exception(error)
        print(f"metarun: {prefix}{type(error).__name__}: {error} (a bug: its traceback is above)", file=sys.stderr)
        return 1
    print(f"metarun: {prefix}{line}", file=sys.stderr)
    return USERS


def tell_stopped(stopped: KeyboardInterrupt) -> int:
    """The exit code of a shell's child that a signal ended."""
    number = getattr(stopped, "signal", 2)
    folder = getattr(stopped, "folder", None)
    remedy = f" To go on: metarun resume={folder}" if folder else ""
    print(f"metarun: stopped by {'Ctrl-C' if number == 2 else f'signal {number}'}.{remedy}", file=sys.stderr)
    return 128 + number


def explain(error: BaseException, conf: Path) -> str | None:
    """One line for a user's mistake, None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: there is no such {group}.{nearest(choice, error.options or [])}"
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException | HydraException):
        return _composition(error, conf)
    if isinstance(error, OSError) and error.errno in DISK:
        return f"cannot write {error.filename or 'a file'}: {error.strerror}. Free some space or set hydra.run.dir=."
    return None


def _composition(error: BaseException, conf: Path) -> str:
    text = str(error).strip()
    found = re.search(r"Could not (?:override|delete|append) '([^']+)'", text)
    if found:
        key = found[1].split("@")[0]
        return f"{key} is no key of the config.{nearest(key, _keys(conf))}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _keys(conf: Path) -> list[str]:
    """All keys that the defaults and each choice of each group offer."""
    GlobalHydra.instance().clear()
    keys: set[str] = set()
    with initialize_config_dir(str(conf), version_base="1.3"):
        for group in (p for p in conf.iterdir() if p.is_dir()):
            for choice in group.glob("*.yaml"):
                config = compose("config", [f"{group.name}={choice.stem}"])
                keys |= {group.name, *_flat(OmegaConf.to_container(config))}
    return sorted(keys)


def _flat(section: Any, prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}"
