"""Names that a list of the config picks out of those there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from metarun.types import UserError, nearest


def picked(key: str, given: Sequence[str], there: Collection[str], kind: str) -> list[str]:
    """The names given, each of which is there and stands once; `kind` says what they are names of."""
    if not given:
        raise UserError(f"{key}=[] names no {kind}.{nearest('', there)}")
    for name in given:
        if name not in there:
            raise UserError(f"{key}: there is no {kind} {name}.{nearest(name, there)}")
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise UserError(f"{key} names the {kind} {twice[0]} twice. Leave out one.")
    return list(given)
