"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from metarun.errors import UserError

REMEDIES = {
    errno.ENOSPC: "Free some space, or point hydra.run.dir at another disk",
    errno.EDQUOT: "Free some of your quota, or point hydra.run.dir at another disk",
}
WRITABLE = "Point hydra.run.dir at a folder that can be written to"


def cannot_write(path: Path, error: OSError) -> UserError:
    """One line: which file, why, and what to do."""
    remedy = REMEDIES.get(error.errno or 0, WRITABLE)
    return UserError(f"cannot write {path}: {error.strerror or error}. {remedy}.")


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path`; whatever goes wrong on the way, the file that was there stays as it was."""
    part = path.with_name(f".{path.name}.tmp")  # one fixed name: what a killed run left is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:  # also Ctrl-C
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; where that is refused the file is whole anyway."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
