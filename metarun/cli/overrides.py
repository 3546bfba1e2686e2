"""What the user typed, made into what Hydra reads: resuming, experiments, a conf folder of one's own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.construct import nearest
from metarun.errors import UserError, one_line

OF_ONE_SESSION = ("resume", "test.only")  # what a resumed run does not inherit
VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
PLAIN = ("--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--info", "-i", "--hydra-help")
VERBS = ("help", "report")


def rewritten(arguments: list[str], conf: Path) -> list[str]:
    """The arguments for Hydra."""
    flags, overrides = parted(arguments)
    overrides = [re.sub(r"^\+experiment=", "experiment=", o) for o in overrides]
    if _has(flags, "-sc", "--shell-completion"):
        return [*_with_own_conf(flags, conf), *overrides]
    _check(overrides)
    resumed = next((_value(o) for o in overrides if _key(o) == "resume"), "null")
    if resumed == "":
        raise UserError("resume= names no run. Give the directory of one, or leave it out.")
    if resumed == "null":
        if "test.only=true" in map(str.lower, overrides):
            raise UserError("test.only=true repeats the meta-test of a run: name it with resume=RUN_DIR.")
        _refuse_taken(overrides)
        named = [_named_by_what_differs(overrides)] if _has(flags, "-m", "--multirun") else []
        return [*_with_own_conf(flags, conf), *overrides, *named]
    if _has(flags, "-m", "--multirun"):
        raise UserError(f"resume={resumed} goes on with one run and cannot be swept. Leave out -m.")
    folder = Path(resumed).expanduser()
    overrides = _resuming(overrides, folder)
    return [*_with_own_conf([*flags, *_conf_of(folder, flags)], conf), *overrides]


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides: argparse takes no overrides on both sides of a flag, people type them so."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if not argument.startswith("-"):
            overrides.append(argument)
        elif name in VALUED:
            value = argument.partition("=")[2] if "=" in argument else next(rest, "")
            flags += [name, value]
        elif argument in PLAIN:
            flags.append(argument)
        else:
            raise UserError(f"{argument} is no flag.{nearest(argument, [*VALUED, *PLAIN, '--help', '--version'])}")
    return flags, overrides


def places_of_code(arguments: list[str]) -> list[str]:
    """Where a user's own algorithm or network is looked for: here, and beside the folder of their YAML."""
    after = [b for a, b in pairwise(arguments) if a in ("--config-dir", "-cd")]
    return [os.getcwd(), *(str(Path(folder).resolve().parent) for folder in after)]


def typed_label(overrides: Iterable[str], folder: Path) -> str:
    """What a repeated meta-test is called: by name= if that was typed, else by all that was."""
    typed = added(overrides, folder)
    names = [_value(o) for o in typed if _key(o) == "name"]
    return label(names[-1] if names else ",".join(typed)) or "test"


def added(overrides: Iterable[str], folder: Path) -> list[str]:
    """What was typed beside the overrides that the run in `folder` was started with."""
    before = _overrides_of(folder)
    return [o for o in overrides if o not in before and _key(o) not in OF_ONE_SESSION]


def label(text: str) -> str:
    """A text that can be part of a file's name."""
    return re.sub(r"[^\w.,=+-]+", "-", str(text))[:120]


def sweep_name(overrides: Iterable[str], choices: Mapping[str, str]) -> str:
    """Of a sweep's directory: what was typed for algo and data, swept or not."""
    typed = {_key(o): _value(o) for o in overrides}
    name = "_".join(typed.get(group) or choices[group] for group in ("algo", "data"))
    return label(typed.get("name") or name)


def quoted(text: object) -> str:
    """A value that Hydra's grammar takes as it is, whatever is in it."""
    return "'" + str(text).replace("'", "\\'") + "'"


def _check(overrides: Iterable[str]) -> None:
    for override in overrides:
        if "=" in override and _key(override):
            continue
        if not override.startswith("~"):
            raise UserError(f"{override} is neither key=value nor one of {', '.join(VERBS)}. See metarun --help.")


def _named_by_what_differs(overrides: list[str]) -> str:
    """Jobs of a sweep are called by what is swept: what all of them share would hide it."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    shared = [quoted(p.get_key_element()) for p in parsed if not p.is_sweep_override()]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"


def _refuse_taken(overrides: Iterable[str]) -> None:
    """A directory that was named by hand and holds a trained run would lose it."""
    trained = {"hydra.run.dir": "checkpoints", "hydra.sweep.dir": "*/checkpoints"}
    for override in overrides:
        key, folder = _key(override), Path(_value(override))
        if key in trained and any(folder.glob(trained[key])):
            raise UserError(f"{override} holds a run already. Name another folder, or go on with resume=RUN_DIR.")


def _resuming(overrides: list[str], folder: Path) -> list[str]:
    """The run's own overrides come first, so that what is typed now wins; its directory stays."""
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"resume={folder} is no run: there is no {file}. Give the directory that a run named.")
    typed = [o for o in overrides if _key(o) != "resume"]
    keys = {_key(o) for o in typed} | set(OF_ONE_SESSION)
    before = [o for o in _overrides_of(folder) if _key(o) not in keys]
    place = quoted(folder.resolve())
    # .hydra is written when the run is known to go on: a refused resume leaves it as it was
    return [*before, *typed, f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null"]


def _overrides_of(folder: Path) -> list[str]:
    found = _yaml(folder / ".hydra" / "overrides.yaml")
    return [str(o) for o in found] if isinstance(found, list) else []


def _conf_of(folder: Path, flags: Iterable[str]) -> list[str]:
    """The folder of YAML that the run to resume was started with."""
    if _has(flags, "--config-dir", "-cd"):
        return []
    recorded = _yaml(folder / ".hydra" / "hydra.yaml") or {}
    sources = recorded.get("hydra", {}).get("runtime", {}).get("config_sources", [])
    paths = [s["path"] for s in sources if s.get("provider") == "command-line" and Path(s["path"]).is_dir()]
    return ["--config-dir", paths[0]] if paths else []


def _with_own_conf(flags: list[str], conf: Path) -> list[str]:
    own = Path("conf").resolve()
    if _has(flags, "--config-dir", "-cd") or not own.is_dir() or own == conf.resolve():
        return flags
    if (own / "config.yaml").exists():
        print("metarun: ./conf is left aside: its config.yaml would replace metarun's. Rename it.", file=sys.stderr)
        return flags
    return [*flags, "--config-dir", str(own)]


def _yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}). Mend it.") from error


def _has(arguments: Iterable[str], *flags: str) -> bool:
    return any(a.partition("=")[0] in flags for a in arguments)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _value(override: str) -> str:
    value = override.partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
