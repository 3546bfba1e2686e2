"""Where a data set lies."""

from __future__ import annotations

import os
from pathlib import Path

from metarun.errors import UserError, shown


def root_of(given: str) -> Path:
    """The folder that data.root names. Files of a run repeat its name, so it has to be text."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"data.root={shown(given)} is no UTF-8. Rename it, or give a link to it.") from error
    return Path(os.path.expanduser(given))
