"""What a check found."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """One line of the table."""

    what: str
    holds: bool | None  # None: there is nothing to check
    found: str
