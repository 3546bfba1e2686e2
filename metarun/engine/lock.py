"""One process at a time where files are written: a lock that the system lifts when its holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TAKEN = {errno.EAGAIN, errno.EACCES}
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}  # a file system without them: then nobody is held up


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock on the file at `path`, which is there for as long as it is held.

    Where another process holds it, `busy` is told which one (process, machine, since when): it may raise; otherwise
    this process waits for its turn. A process may hold a lock only once at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if not _taken(file, fcntl.LOCK_NB):
                busy(_holder(file))
                _taken(file, 0)
            if not _is_at(path, file):  # whoever held it took it away, so that others lock another file
                continue
            try:
                file.truncate(0)
                file.write(
                    f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                )
                file.flush()
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return


def _taken(file: IO[str], how: int) -> bool:
    """Whether this process has the lock now. Closing the file gives it back."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | how)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
