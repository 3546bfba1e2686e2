"""A training that all of metarun's trackers watch, as in a real run, and that leaves nothing behind."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TextIO

from benchmarks.session import Session
from metarun.tracking.trackers import Trackers


@contextmanager
def watched(overrides: Sequence[str], steps: int) -> Iterator[Session]:
    """The bar counts to `steps`; print nothing inside, where the live display owns standard output."""
    with TemporaryDirectory() as folder, terminal() as screen:
        with redirect_stdout(screen):
            trackers = Trackers.of_training(steps, Path(folder), 0)
        with trackers.closing({"status": "completed"}):
            yield Session.start(overrides, trackers)


@contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal that nobody looks at: the live bar is drawn as it is for a person."""
    master, slave = pty.openpty()
    Thread(target=_drain, args=(master,), daemon=True).start()
    with os.fdopen(slave, "w") as screen:
        yield screen


def _drain(master: int) -> None:
    with suppress(OSError):  # the terminal is closed
        while os.read(master, 1 << 16):
            pass
    os.close(master)
