"""What directories and files of runs are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from omegaconf import OmegaConf

from metarun.cli.overrides import OF_ONE_SESSION, parsed, recorded
from metarun.engine.ranks import Team
from metarun.errors import UserError


def register(team: Team) -> None:
    """Makes the functions below known to conf/config.yaml, whose hydra section names directories by them."""
    OmegaConf.register_new_resolver("metarun.label", label, replace=True)
    OmegaConf.register_new_resolver("metarun.sweep", sweep_name, replace=True)
    OmegaConf.register_new_resolver(
        "metarun.free", lambda folder: team.broadcast(partial(new_folder, folder)), replace=True, use_cache=True
    )


def new_folder(folder: str) -> str:
    """Makes the folder, or the first of FOLDER-2, FOLDER-3, ... that is not there yet, and returns its name.

    It is made at once, so that two runs of one second do not both take it.
    """
    for number in count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        try:
            os.makedirs(name)
            return name
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"cannot make {name}: {error.strerror}. Change the directory, or name a folder with hydra.run.dir=DIR."
            ) from error
    raise AssertionError("there are always more numbers")


def forget(folder: Path) -> None:
    """Removes the folder of a run that never began, and those around it that then are empty, up to where one stands."""
    if folder == Path.cwd():
        return
    with suppress(OSError):  # it holds something, or is gone
        folder.rmdir()
        for parent in folder.parents:
            if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
                break
            parent.rmdir()


def label(text: object) -> str:
    """The text as a part of a file's name: what might not stand there becomes a dash."""
    return re.sub(r"[^\w.,=+-]+", "-", str(text))[:120]


def sweep_name(words: Iterable[str], choices: Mapping[str, str]) -> str:
    """What a sweep's directory is called: its name= if that was typed, or its experiments, else its algorithms and its
    data sets."""
    typed = {o.key_or_group: o.get_value_string() if o.is_sweep_override() else o.value() for o in parsed(words)}
    groups = "_".join(str(typed.get(group) or choices[group]) for group in ("algo", "data"))
    return label(typed.get("name") or typed.get("experiment") or groups)


def typed_label(words: Iterable[str], folder: Path) -> str:
    """What a repeated meta-test of the run in `folder` is called: its name= if that was typed, else all that was."""
    before = recorded(folder)
    typed = [o for o in parsed(words) if o.input_line not in before and o.key_or_group not in OF_ONE_SESSION]
    names = [o.value() for o in typed if o.key_or_group == "name"]
    return label(names[-1] if names else ",".join(str(o.input_line) for o in typed)) or "test"
