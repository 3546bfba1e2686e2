"""What was typed, made into what Hydra reads: resuming, experiments, a conf folder of one's own."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import OverrideParseException

from metarun.cli import VERBS
from metarun.construct import nearest, shown
from metarun.errors import UserError, one_line

OF_ONE_SESSION = ("resume", "test.only")  # what a resumed run does not inherit
CONFIG, HYDRA, OVERRIDES = (f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides"))  # a run's record
AGAIN = " Start it anew."
SIGN = "# sha256 of what follows: "
OWN_SOURCES = ("hydra", "main", "schema")  # of YAML: Hydra's and metarun's
WITH_VALUE = {"--cfg": "-c", "--config-path": "-cp", "--config-name": "-cn", "--config-dir": "-cd"}
COMMANDS = {"--run": "-r", "--multirun": "-m", "--shell-completion": "-sc"}  # and --cfg: one at a time
BARE = {**COMMANDS, "--resolve": "", "--hydra-help": ""}
LONG = {short: long for long, short in {**WITH_VALUE, **BARE}.items() if short}
SHOWN = ("job", "hydra", "all")  # by --cfg
COMPLETION = re.compile("(install|uninstall|query)=(bash|fish|zsh)")


def for_hydra(arguments: list[str], conf: Path) -> list[str]:
    """The arguments that Hydra is started with; `conf` is the folder of YAML that metarun ships."""
    flags, words = parted(arguments)
    _check_flags(flags, words)
    if "--shell-completion" in flags:
        return [*_with_own_conf(flags, conf), *words]
    _refuse_blanks(words)
    overrides = parsed(words)
    _check_choices(overrides, [conf, Path("conf"), *(Path(b) for a, b in pairwise(flags) if a == "--config-dir")])
    typed = {o.key_or_group: o.value() for o in overrides}
    sweep, resumed = "--multirun" in flags or typed.get("hydra.mode") == "MULTIRUN", typed.get("resume")
    if resumed == "":
        raise UserError("resume= names no run. Give the directory of one, or leave it out.")
    if resumed is not None:
        if sweep:
            raise UserError(f"resume={shown(resumed)} goes on with one run and cannot be swept. Leave out -m.")
        folder = Path(os.path.expanduser(str(resumed)))
        words = _resuming(overrides, folder)
        _check_conf(folder, flags)
        return [*_with_own_conf(flags, conf), *words]
    if typed.get("test.only") is True:
        raise UserError("test.only=true repeats the meta-test of a run: name it with resume=RUN_DIR.")
    _refuse_taken(overrides)
    return [*_with_own_conf(flags, conf), *_lines(overrides), *_named_by_what_differs(overrides)]


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags, and the other words: people type them mixed, and argparse takes no words on both sides of a flag."""
    flags: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        name = LONG.get(name, name)
        if not argument.startswith("-"):
            words.append(argument)
        elif name in WITH_VALUE:
            flags += [name, value if equals else next(rest, "")]
        elif name in BARE and not equals:
            flags.append(name)
        elif equals:
            raise UserError(f"{argument} is no flag. A key is typed without dashes: {argument.lstrip('-')}.")
        else:
            raise UserError(f"{argument} is no flag.{nearest(argument, [*WITH_VALUE, *BARE, '--help', '--version'])}")
    return flags, words


def _check_flags(flags: list[str], words: list[str]) -> None:
    """Refuses flags that exclude each other, and those that lack what they need."""
    commands = [flag for flag in dict.fromkeys(flags) if flag in (*COMMANDS, "--cfg")]
    values = {flag: value for flag, value in pairwise([*flags, ""]) if flag in WITH_VALUE}
    if len(commands) > 1:
        raise UserError(f"{' and '.join(commands)} exclude each other. Leave out all but one.")
    if "" in values.values():
        raise UserError(f"{next(flag for flag, value in values.items() if not value)} wants a value behind it.")
    if values.get("--cfg", SHOWN[0]) not in SHOWN:
        raise UserError(f"--cfg {values['--cfg']} shows nothing. Give one of {', '.join(SHOWN)}, as --cfg job.")
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve says how --cfg shows values. Add --cfg job, or leave it out.")
    if "--shell-completion" in flags and not (len(words) == 1 and COMPLETION.fullmatch(words[0])):
        raise UserError('-sc completes words in your shell: eval "$(metarun -sc install=bash)", or fish, or zsh.')
    if "--config-dir" in values and not Path(values["--config-dir"]).is_dir():
        raise UserError(f"--config-dir {values['--config-dir']}: there is no such folder. Give one that holds YAML.")


def _refuse_blanks(words: list[str]) -> None:
    for before, after in pairwise(words):
        value_apart = before.endswith("=") and "=" not in after and not after.startswith("~")
        if value_apart or (after.startswith("=") and "=" not in before):
            raise UserError(f"{before} {after}: between a key and its value there are no blanks. Type train.steps=5.")


def _check_choices(overrides: Iterable[Override], folders: list[Path]) -> None:
    """Refuses what can be no choice of a group, as null and a number, and what can be no key of Hydra's own section."""
    for o in overrides:
        key, value = str(o.key_or_group), o.value()
        group = key.removeprefix("test.")  # test.data names a choice of data, or none
        names = {file.stem for folder in folders for file in folder.glob(f"{group}/*.yaml")}
        for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
            fits = isinstance(choice, str | QuotedString | list | dict | Sweep) or (choice is None and group != key)
            if names and not fits and not o.is_delete():
                raise UserError(f"{key}={shown(choice)}: there is no such {group}.{nearest('', names)}")
        if key == "hydra":
            raise UserError(f"{o.input_line}: hydra is a section. Set its keys one by one, as hydra.run.dir=DIR.")
        if key.startswith("hydra.sweeper.params"):
            raise UserError(f"{o.input_line} belongs into a YAML file. Here a sweep is typed as -m seed=0,1.")


def places_of_code(arguments: list[str]) -> list[str]:
    """Where a user's own algorithm or network is looked for: here, and beside the folder of their YAML."""
    after = [b for a, b in pairwise(arguments) if a in ("--config-dir", "-cd")]
    return [os.getcwd(), *(str(Path(folder).resolve().parent) for folder in after)]


def parsed(words: Iterable[str]) -> list[Override]:
    """The words as Hydra understands them."""
    parser = OverridesParser.create()
    return [_parsed(parser, _spelled(word)) for word in words]


def recorded(folder: Path) -> list[str]:
    """The words that the run in `folder` was started with. A damaged record would make it another run."""
    file = folder / OVERRIDES
    if not file.exists():
        return []
    text, found = _text(file), _yaml(file)
    first, _, rest = text.partition("\n")
    if not isinstance(found, list) or (first.startswith(SIGN) and signed(rest) != text):
        raise UserError(f"{file} is damaged: it does not tell how the run was started.{AGAIN}")
    return [str(word) for word in found]


def signed(text: str) -> str:
    """A text under a line by which it is known to be whole."""
    return f"{SIGN}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def quoted(text: object) -> str:
    """A value that Hydra's grammar takes as it is, whatever is in it."""
    return QuotedString(str(text), Quote.single).with_quotes()


def _parsed(parser: OverridesParser, word: str) -> Override:
    try:
        (override,) = parser.parse_overrides([word])
        readable = bool(override.key_or_group)
    except OverrideParseException:
        if re.match("[^=]+=", word):
            raise  # its value wants quotes: cli/mistakes.py says how
        readable = False
    if not readable:
        raise UserError(f"{word} is neither key=value nor one of {', '.join(VERBS)}. See metarun --help.")
    return override


def _spelled(word: str) -> str:
    """The word in Hydra's grammar, where people type it otherwise."""
    if word.startswith("+experiment="):  # elsewhere no experiment is the default, and + adds one
        return word.removeprefix("+")
    if word.startswith(("data.keys.", "test.keys.")):  # keys of data sets that the config does not hold
        return f"++{word}"
    key, _, value = word.partition("=")
    if key == "resume" and value not in ("", "null") and value[0] + value[-1] not in ("''", '""'):
        return f"{key}={quoted(value)}"  # a directory like 1_algo=maml,seed=0, as the shell completes it
    return word


def _lines(overrides: Iterable[Override]) -> list[str]:
    return [str(o.input_line) for o in overrides]


def _named_by_what_differs(overrides: Iterable[Override]) -> list[str]:
    """Jobs of a sweep are called by what is swept: what all of them share would hide it.

    A YAML file may ask for the sweep, so that nobody knows yet whether this is one.
    """
    shared = [quoted(o.get_key_element()) for o in overrides if not o.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"] if shared else []


def _refuse_taken(overrides: Iterable[Override]) -> None:
    """A directory that was named by hand and holds a trained run would lose it."""
    trained = {"hydra.run.dir": "checkpoints/*.pt", "hydra.sweep.dir": "*/checkpoints/*.pt"}
    for o in overrides:
        if o.key_or_group in trained and any(Path(str(o.value())).glob(trained[o.key_or_group])):
            raise UserError(f"{o.input_line} holds a run already. Name another folder, or go on with resume=RUN_DIR.")


def _resuming(overrides: list[Override], folder: Path) -> list[str]:
    """The run's own overrides come first, so that what is typed now wins; its directory stays."""
    file = folder / OVERRIDES
    if not file.is_file():
        raise UserError(f"resume={folder} is no run: there is no {file}. Give the directory that a run named.")
    typed = [o for o in overrides if o.key_or_group != "resume"]
    keys = {o.key_or_group for o in typed} | set(OF_ONE_SESSION)
    before = [o for o in parsed(recorded(folder)) if o.key_or_group not in keys]
    place = quoted(folder.resolve())
    kept = [o for o in before if not o.key_or_group.startswith("hydra")]  # how it was launched is no part of a run
    return [*_lines(kept), *_lines(typed), f"resume={place}", f"hydra.run.dir={place}", "hydra.mode=RUN"]


def _check_conf(folder: Path, flags: Iterable[str]) -> None:
    """A folder of YAML may name any code: one that a run was started with has to be ./conf, or to be named again."""
    if "--config-dir" in flags or not (folder / HYDRA).exists():
        return
    written = _yaml(folder / HYDRA)
    try:
        sources = written["hydra"]["runtime"]["config_sources"]
        paths = [Path(s["path"]) for s in sources if s["provider"] not in OWN_SOURCES]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / HYDRA} is damaged: it does not tell how the run was started.{AGAIN}") from error
    for path in paths:
        if path.is_dir() and path.resolve() != Path("conf").resolve():
            raise UserError(
                f"resume={folder} was started with the folder of YAML {path}, which may name code to run. "
                f"If you trust it, add --config-dir {quoted(path)}."
            )


def _with_own_conf(flags: list[str], conf: Path) -> list[str]:
    own = Path("conf").resolve()
    if "--config-dir" in flags or not own.is_dir() or own == conf.resolve():
        return flags
    if (own / "config.yaml").exists():
        print("metarun: ./conf is left aside: its config.yaml would replace metarun's. Rename it.", file=sys.stderr)
        return flags
    return [*flags, "--config-dir", str(own)]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}). Mend it.") from error


def _yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(_text(file))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}). Mend it.") from error
