"""The command line: `metarun VERB ...` is answered by the file of that name here, anything else by train.py."""

from __future__ import annotations

from pathlib import Path

import metarun

# Each has main(arguments) -> exit code. What it raises is told in one line.
VERBS = (
    "check",
    "help",
    "report",
)

_PACKAGE = Path(metarun.__file__).parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # a wheel's, or the checkout's
