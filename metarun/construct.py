"""From a section of the config to the object it describes, with an answer to every wrong key and value."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any

from metarun.types import UserError

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


def target_of(section: Mapping[str, Any], prefix: str) -> Any:
    """The class or function that `_target_` names."""
    try:
        return resolve_name(section["_target_"])
    except (ImportError, AttributeError, ValueError, KeyError) as error:
        raise UserError(f"{prefix}._target_={section.get('_target_')} cannot be imported: {error}.") from error


def construct(section: Mapping[str, Any], prefix: str, target: Any = None, **given: Any) -> Any:
    """target(**given, **section): `target` is what `_target_` names unless it is handed in."""
    try:
        return prepared(section, prefix, *given, target=target)(**given)
    except ValueError as error:
        raise UserError(f"{prefix}: {error}.") from error


def prepared(section: Mapping[str, Any], prefix: str, *later: str, target: Any = None) -> partial[Any]:
    """The same before the call: checked, and waiting for the arguments named in `later`."""
    target = target or target_of(section, prefix)
    values = {str(k): v for k, v in section.items() if k not in ("_target_", "_partial_")}
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    accepted = [name for name in signature.parameters if name not in later]
    for key, value in values.items():
        if key not in accepted:
            raise UserError(f"{_path(prefix, key)} is no key here.{nearest(key, accepted)}")
        if not fits(value, hints.get(key, Any)):
            raise UserError(f"{_path(prefix, key)}={value!r} is not {describe(hints[key])}.")
    needed = [n for n in accepted if n not in values and signature.parameters[n].default is inspect.Parameter.empty]
    if needed:
        raise UserError(f"{_path(prefix, needed[0])} is missing: {section.get('_target_', prefix)} needs it.")
    return partial(target, **values)


def _path(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the choices most like `word`, or all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" There are: {', '.join(choices)}."


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value is what a type hint asks for; hints that YAML cannot express pass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    if isinstance(value, bool):
        return hint not in (int, float, str, list, types.NoneType)
    kinds: dict[Any, Any] = {float: (int, float), int: int, bool: bool, str: str, list: list, types.NoneType: types.NoneType}
    return isinstance(value, kinds.get(hint, object))


def describe(hint: Any) -> str:
    """A type hint in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list of {describe(arguments[0]).removeprefix('a ')}s"
    return "null" if hint is types.NoneType else NAMES.get(hint, str(hint))
