"""Where what was worked out once is kept for later runs: decoded images, and how tasks are best mapped."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """METARUN_CACHE, or a folder of metarun's own where the system keeps such things."""
    if own := os.environ.get("METARUN_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "metarun"
