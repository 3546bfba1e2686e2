"""A disk that fails on demand: within this process, the n-th operation below a folder raises an OSError."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WRITING = set("wax+")
CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS = ("mkdir", "replace", "rename", "fsync")


class Disk:
    """Counts what is done below `folder`, and fails at operation number `at`; from then on always, if `lasting`."""

    def __init__(self, folder: str, error: str, at: int, lasting: bool) -> None:
        self.folder, self.error, self.at, self.lasting = folder, getattr(errno, error), at, lasting
        self.count = 0
        self.open, self.os_open = io.open, os.open

    def touch(self, path: str) -> None:
        """One operation on a file or folder."""
        if path == self.folder or path.startswith(f"{self.folder}/"):
            self.count += 1
            if self.count == self.at or (self.lasting and self.count > self.at):
                raise OSError(self.error, os.strerror(self.error), path)

    def opened(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """In place of `open`."""
        if not WRITING & set(mode) or isinstance(file, int):
            return self.open(file, mode, *args, **kwargs)
        path = _path(file)
        self.touch(path)
        return Failing(self.open(file, mode, *args, **kwargs), partial(self.touch, path))

    def opened_by_number(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        """In place of `os.open`."""
        if flags & CREATING:
            self.touch(_path(path))
        return self.os_open(path, flags, *args, **kwargs)

    def called(self, call: Callable[..., Any], target: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of a function of `os`."""
        self.touch(_path(target))
        return call(target, *args, **kwargs)


class Failing:
    """A file whose `write` may fail, with half of what was to be written on the disk."""

    def __init__(self, file: Any, touch: Callable[[], None]) -> None:
        self.file, self.touch = file, touch

    def write(self, data: Any) -> Any:
        try:
            self.touch()
        except OSError:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Any:
        return iter(self.file)


def inject(folder: str, error: str, at: int, lasting: bool) -> None:
    """From now on the disk below `folder` fails so."""
    disk = Disk(folder, error, at, lasting)
    builtins.open = io.open = disk.opened
    os.open = disk.opened_by_number
    for name in CALLS:
        setattr(os, name, partial(disk.called, getattr(os, name)))


def _path(file: Any) -> str:
    """The absolute path of a path or of an open file's number."""
    if isinstance(file, int):
        link = Path(f"/proc/self/fd/{file}")
        return os.readlink(link) if link.exists() else ""
    return os.path.abspath(os.fsdecode(file))
