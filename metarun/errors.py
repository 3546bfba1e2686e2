"""The one exception that is meant for the user, and words for it. They stand alone: the command line needs them without
torch."""

from __future__ import annotations

import os
from collections.abc import Sequence


class UserError(Exception):
    """A mistake the user can mend: one line that names the key, its value and the remedy."""


def one_line(error: BaseException | str) -> str:
    """What an error says, without line breaks; the name of its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it may be printed, written and compared: bytes that are no UTF-8 and control characters are escaped."""
    return "".join(c if c.isprintable() else _escape(c) for c in os.fspath(path))


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # what Python makes of such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def few(words: Sequence[str], most: int = 10) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
