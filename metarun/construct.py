"""From a section of the config to the object it describes, with an answer to every wrong key and value.

A field's annotation says what its key takes: `steps: Annotated[int, AtLeast(1)]`, for short `steps: Count`. A key that
says how a run is computed, not what it learns, is marked there too: `remat: Annotated[bool, COMPUTE_ONLY]`. So is one
that a reader of results must know, since papers and programs differ in it: `adapt_norm: Annotated[bool, PROTOCOL]`.
A value that is itself a section with a `_target_` is built first; with `_partial_: true`, it becomes a function that
waits for the rest of its arguments.
"""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Annotated, Any

from metarun.bounds import BOUNDS, beyond_machine
from metarun.errors import UserError

COMPUTE_ONLY = "how a run is computed, not what it learns"
PLACE = "where something lies; a relative path starts where the run was started"
PROTOCOL = "a silent choice that numbers depend on"
Place = Annotated[str, COMPUTE_ONLY, PLACE]
LONGEST = 200  # letters of a value that are shown

UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
PLAIN = (bool, int, float, str, list, dict, types.NoneType)  # what YAML itself can write
UNBUILT = object()  # stands for a nested section that is checked and not built
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
    found = _resolved(name, prefix)
    kind = "an interface" if inspect.isabstract(found) or _is_protocol(found) else f"a {type(found).__name__}"
    if kind == "an interface" or not callable(found):
        raise UserError(f"{prefix}._target_={shown(name)} is {kind}, which makes nothing. Name a class or a function.")
    return found


def _resolved(name: str, prefix: str) -> Any:
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
    if section.get("_partial_"):
        target = target or target_of(section, prefix)
        return partial(target, **given, **_arguments(section, prefix, target, given, construct))
    call = prepared(section, prefix, *given, target=target)
    try:
        return call(**given)
    except ValueError as error:
        raise UserError(f"{prefix}: {error}. Change that key of {prefix}.") from error


def prepared(section: Any, prefix: str, *later: str, target: Any = None) -> partial[Any]:
    """The same before the call: checked, and waiting for the arguments named in `later`."""
    target = target or target_of(section, prefix)
    arguments = _arguments(section, prefix, target, later, construct)
    _refuse_missing(section, prefix, target, {*arguments, *later})
    return partial(target, **arguments)


def check(section: Any, prefix: str, target: Any = None, given: Collection[str] | None = None) -> None:
    """Refuses a section's wrong keys and values, those of nested sections too, and builds nothing.

    Where `given` names what the run will add, keys that are missing are refused as well.
    """
    target = target or target_of(section, prefix)
    arguments = _arguments(section, prefix, target, given or (), _checked)
    if given is not None:
        _refuse_missing(section, prefix, target, {*arguments, *given})


def takes(section: Any, prefix: str, name: str) -> bool:
    """Whether what `_target_` names takes an argument of that name."""
    return name in _parameters(section, prefix, target_of(section, prefix))[0]


def _parameters(section: Any, prefix: str, target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """What a target takes by name, and whether it takes any other name too."""
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError) as error:  # of what is written in C
        what = f"{prefix}._target_={section.get('_target_')}"
        raise UserError(f"{what} does not tell what it takes. Name another class or function.") from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in found if p.kind in kinds}, any(p.kind == inspect.Parameter.VAR_KEYWORD for p in found)


def _refuse_missing(section: Any, prefix: str, target: Any, there: Collection[str]) -> None:
    named, _ = _parameters(section, prefix, target)
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in there:
            raise UserError(f"{_path(prefix, name)} is missing. Give it a value.")


def marked(mark: str, section: Any, prefix: str, target: Any = None) -> dict[str, Any]:
    """The dotted keys of a section, and of nested ones, that carry a mark where they are defined; with their values."""
    hints = hints_of(target or target_of(section, prefix))
    found = {}
    for key, value in _values(section).items():
        if _has(mark, hints.get(key)):
            found[_path(prefix, key)] = value
        else:
            _replaced(value, _path(prefix, key), lambda inner, path: found.update(marked(mark, inner, path)))
    return found


def _has(mark: str, hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated and mark in hint.__metadata__


def _checked(section: Any, prefix: str) -> Any:
    check(section, prefix)
    return UNBUILT


def _arguments(
    section: Any, prefix: str, target: Any, later: Collection[str], build: Callable[[Any, str], Any]
) -> dict[str, Any]:
    """The values of a section, each of them what the target takes; nested sections are what `build` makes of them."""
    hints = hints_of(target)
    named, takes_any = _parameters(section, prefix, target)
    if strange := [name for name in later if name not in named and not takes_any]:
        what = f"{prefix}._target_={section.get('_target_')} takes no {strange[0]}"
        raise UserError(f"{what}, which the run gives to every {prefix}. Name another class or function.")
    accepted = [name for name in named if name not in later]
    arguments = {}
    for key, value in _values(section).items():
        path = _path(prefix, key)
        if key not in accepted and (key in later or not takes_any):
            raise UserError(f"{path} is no key here.{nearest(key, accepted, _path(prefix, ''))}")
        arguments[key] = _replaced(value, path, build)
        if wrong := _complaint(arguments[key], hints.get(key, Any)):
            typed = _replaced(value, path, lambda inner, _: inner["_target_"])
            raise UserError(f"{path}={shown(typed)}{wrong}")
    return arguments


def _values(section: Any) -> dict[str, Any]:
    return {str(k): v for k, v in section.items() if k not in ("_target_", "_partial_")}


def _replaced(value: Any, path: str, build: Callable[[Any, str], Any]) -> Any:
    """A value in which each section that has a `_target_` became build(section, its path)."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, path)
        return {key: _replaced(v, _path(path, key), build) for key, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, _path(path, i), build) for i, v in enumerate(value)]
    return value


def hints_of(target: Any) -> dict[str, Any]:
    """The annotations of what a target takes, by name."""
    if inspect.isclass(target) and not is_dataclass(target):
        target = target.__init__  # of a dataclass the class itself, which knows where each field's type was imported
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # types imported for the type checker alone: their values go unchecked
        return {}


def _path(prefix: str, key: object) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def shown(value: Any) -> str:
    """A value as one types it, cut where it is endless."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def nearest(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """A sentence that names the choices most like `word`, or all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(prefix + c for c in close)}?"
    return f" There are: {', '.join(choices)}." if choices else " There are none."


def _complaint(value: Any, hint: Any) -> str:
    """What is wrong with a value where a type hint stands, and the remedy; empty where nothing is."""
    if not fits(value, hint):
        return f" does not fit. Give {describe(hint) or 'a section with a _target_'}."
    return _out_of_bounds(value, hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a hint asks for, as YAML means it; a hint that says nothing takes any."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is UNBUILT or hint is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in UNIONS:
        return any(fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in LISTS:
        return isinstance(value, list) and _is_long(len(value), hint) and all(fits(*e) for e in _entries(value, hint))
    return _is_a(value, origin or hint)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is an instance of a class: true is no number, a whole number is one with a fraction too."""
    if kind is Callable:
        return callable(value)
    if not inspect.isclass(kind):
        return True
    if _is_protocol(kind):
        return not isinstance(value, PLAIN)
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _is_protocol(kind: Any) -> bool:
    return typing.Protocol in getattr(kind, "__bases__", ())


def _fixed(hint: Any) -> bool:
    """Whether the hint of a list names each of its entries."""
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1:] != (...,)


def _is_long(length: int, hint: Any) -> bool:
    """Whether a list may be so long."""
    return not _fixed(hint) or length == len(typing.get_args(hint))


def _entries(values: Sequence[Any], hint: Any) -> list[tuple[Any, Any]]:
    """Each entry of a list that is as long as it may be, beside its own hint."""
    hints = typing.get_args(hint)
    return list(zip(values, hints if _fixed(hint) else [hints[0]] * len(values), strict=True))


def _out_of_bounds(value: Any, hint: Any) -> str:
    """What is wrong with a value, or with one in a list, that is of the right type; empty where nothing is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is UNBUILT:
        return ""
    if origin is Annotated:
        wrong = _out_of_bounds(value, arguments[0])
        bounds = [b for b in arguments[1:] if isinstance(b, BOUNDS) and value is not None]
        return wrong or next(filter(None, (b.complaint(value) for b in bounds)), "")
    if origin in UNIONS:
        wrongs = [_out_of_bounds(value, a) for a in arguments if fits(value, a)]
        return "" if "" in wrongs else wrongs[0]
    if origin in LISTS:
        found = ((v, _out_of_bounds(v, h)) for v, h in _entries(value, hint))
        return next((f": {shown(v)}{wrong}" for v, wrong in found if wrong), "")
    return beyond_machine(value, hint) if hint in (int, float) else ""


def describe(hint: Any) -> str:
    """A type hint in words; what YAML cannot express is left out."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(d for d in map(describe, arguments) if d))
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(shown, arguments))
    if origin in LISTS:
        entries = describe(arguments[0]).partition(" ")[2]
        count = f"{len(arguments)} " if origin is tuple and arguments[-1] is not ... else ""
        return f"a list of {count}{entries}s" if entries else "a list"
    return NAMES.get(hint, "")
