"""From a section of the config to the object it describes, with an answer to every wrong key and value."""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

from metarun.errors import UserError

NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    types.NoneType: "null",
}


def target_of(section: Mapping[str, Any], prefix: str) -> Any:
    """The class or function that `_target_` names."""
    name = str(section.get("_target_"))
    try:
        return resolve_name(name)
    except ModuleNotFoundError as error:
        if not f"{name.replace(':', '.')}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not: its author needs the traceback
        remedy = f"There is no module {error.name}: mend the name, or start metarun where {error.name}.py lies"
        raise UserError(f"{prefix}._target_={name} cannot be imported. {remedy}.") from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"{prefix}._target_={name} cannot be imported: {error}. Mend the name.") from error


def construct(section: Any, prefix: str, target: Any = None, **given: Any) -> Any:
    """target(**given, **section): `target` is what `_target_` names unless it is handed in."""
    call = prepared(section, prefix, *given, target=target)
    try:
        return call(**given)
    except ValueError as error:
        raise UserError(f"{prefix}: {error}. Change that key of {prefix}.") from error


def prepared(section: Any, prefix: str, *later: str, target: Any = None) -> partial[Any]:
    """The same before the call: checked, and waiting for the arguments named in `later`."""
    target = target or target_of(section, prefix)
    values = {str(k): v for k, v in section.items() if k not in ("_target_", "_partial_")}
    signature = inspect.signature(target)
    hints = _hints(target)
    accepted = [name for name in signature.parameters if name not in later]
    for key, value in values.items():
        if key not in accepted:
            raise UserError(f"{_path(prefix, key)} is no key here.{nearest(key, accepted, _path(prefix, ''))}")
        if not fits(value, hints.get(key, Any)):
            raise UserError(f"{_path(prefix, key)}={shown(value)} does not fit. Give {describe(hints[key])}.")
    needed = [n for n in accepted if n not in values and signature.parameters[n].default is inspect.Parameter.empty]
    if needed:
        raise UserError(f"{_path(prefix, needed[0])} is missing. Give it a value.")
    return partial(target, **values)


def _hints(target: Any) -> dict[str, Any]:
    if inspect.isclass(target) and not is_dataclass(target):
        target = target.__init__  # of a dataclass the class itself, which knows where each field's type was imported
    try:
        return typing.get_type_hints(target)
    except NameError:  # types imported for the type checker alone: their values go unchecked
        return {}


def _path(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def shown(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def nearest(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """A sentence that names the choices most like `word`, or all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(prefix + c for c in close)}?"
    return f" There are: {', '.join(choices)}." if choices else " There are none."


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value is what a type hint asks for; hints that YAML cannot express pass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    if hint is Any or origin is not None or not inspect.isclass(hint):
        return origin is not tuple or isinstance(value, list)
    if isinstance(value, bool):
        return hint in (bool, object)
    return isinstance(value, (int, float) if hint is float else hint)


def describe(hint: Any) -> str:
    """A type hint in words; what YAML cannot express is left out."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(d for d in map(describe, arguments) if d)) or str(hint)
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(shown, arguments))
    if origin in (list, Sequence):
        return f"a list of {describe(arguments[0]).partition(' ')[2]}s"
    return NAMES.get(hint, "" if inspect.isclass(hint) else str(hint))
