"""What a run directory may have run: it may come from a stranger, and its record names code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.core.override_parser.types import Override

from metarun.errors import UserError

OWN = {  # what each group may name without being asked; of ours, what lies directly in the folder
    "algo": ("metarun.algos",),
    "balance": ("metarun.balance",),
    "data": ("metarun.data",),
    "backbone": ("metarun.backbones",),
    "sharing": ("metarun.backbones.sharing",),
    "optim": ("metarun.optim", "torch.optim"),
    "schedule": ("metarun.optim",),
    "test": ("metarun.data",),  # test.keys
}


def check_targets(
    config: Mapping[str, Any], typed: Iterable[Override] | None, places: Iterable[str], whose: str = "the run to resume"
) -> None:
    """Refuses what another run's config would have built, unless metarun brings it, it lies in a folder that the user
    chose, or the user typed it now; None where what was typed is about another config."""
    asked = {o.key_or_group for o in typed or ()}
    again = "" if typed is None else "type that again, or "
    for group, folders in OWN.items():
        if group in asked:  # a choice made now
            continue
        for path, name in _targets(config.get(group), group):
            if path not in asked and not _is_own(name, folders) and not _lies_in(name, places):
                raise UserError(
                    f"{whose} names code that is neither metarun's nor found here: {path}={name}. "
                    f"If you trust it, {again}start where {name.partition('.')[0]}.py lies."
                )


def _targets(section: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every `_target_` of a section and of what is nested in it, with its dotted key."""
    if isinstance(section, list):
        section = dict(enumerate(section))
    for key, value in section.items() if isinstance(section, Mapping) else ():
        if key == "_target_":
            yield f"{path}._target_", str(value)
        else:
            yield from _targets(value, f"{path}.{key}")


def _is_own(name: str, folders: Iterable[str]) -> bool:
    """Whether it is a class or function that a file of these folders defines, for all to use."""
    if not name.startswith(("metarun.", "torch.optim.")):
        return False
    module, last = _origin(name)
    room = module.rpartition(".")[0]
    return not last.startswith("_") and any(
        room == folder or (folder == "torch.optim" and module.startswith("torch.optim.")) for folder in folders
    )


def _lies_in(name: str, places: Iterable[str]) -> bool:
    """Whether it is defined by a module that lies directly in one of these folders, so that a user stands beside it."""
    top = name.replace(":", ".").partition(".")[0]
    if not top or top in ("metarun", "torch"):
        return False
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:  # told by whoever looks for it
        return True
    files = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    beside = any(Path(file).resolve().parent == Path(place).resolve() for file in files for place in places)
    return beside and _origin(name)[0].partition(".")[0] == top


def _origin(name: str) -> tuple[str, str]:
    """The module that defines what a dotted name leads to, and its name there: `mine.os.system` is not mine's."""
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return name.replace(":", ".").rpartition(".")[0], ""  # there is nothing, which is told where it is built
    return str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", ""))
