"""What a data set's authors offer, fetched whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def download(root: Path, pattern: str, fetch: Callable[[str], None]) -> None:
    """Calls `fetch` with an empty folder; the files of that pattern in it then go to the same places below `root`.

    Whatever goes wrong meanwhile, no folder and no piece of a file stays behind.
    """
    near = next(folder for folder in (root, *root.absolute().parents) if os.path.isdir(folder))
    with TemporaryDirectory(prefix=".download-", dir=near) as place:
        fetch(place)
        files = sorted(Path(place).glob(pattern))
        if not files:
            raise FileNotFoundError(f"no {pattern} came")
        for file in files:
            target = root / file.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
