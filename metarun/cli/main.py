"""The console script: hands what was typed to the file that answers it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import FrameType

import metarun
from metarun.cli import VERBS

STOPS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Aloud(logging.Handler):
    """Tells warnings at the terminal as they come; an error is told at the end. Of several ranks the first speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING and _first_rank():
            with suppress(OSError):
                print(f"metarun: {record.getMessage()}", file=sys.stderr)  # as it is now: a live bar stands in for it


ALOUD = Aloud()


def main() -> int:
    """Answers the command line and returns the exit code."""
    logging.getLogger("metarun").addHandler(ALOUD)
    _on_signals(_stop)  # until a run takes them over
    try:
        return _answer(sys.argv[1:])
    except KeyboardInterrupt as again:  # while the first one was told
        return 128 + getattr(again, "signal", signal.SIGINT)
    finally:
        _on_signals(signal.SIG_DFL)  # else the interpreter would answer them with a traceback, at its end


def _answer(words: list[str]) -> int:
    if words and words[0] in VERBS:
        verb, *words = words
    elif {"--help", "-h"} & set(words):
        verb = "help"
    elif "--version" in words:
        print(f"metarun {metarun.__version__}")
        return 0
    else:
        verb = "train"
    code = 0
    try:
        code = import_module(f"metarun.cli.{verb}").main(words)  # only that one: torch and Hydra take time to import
        sys.stdout.flush()
    except BrokenPipeError:  # metarun --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
    except Exception as error:
        from metarun.cli.mistakes import tell

        code = tell(error)
    return code


def _on_signals(how: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """What is ignored stays so: in the background of a shell, or for a rank that ends anyway."""
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, how)


def _stop(number: int, _: FrameType | None) -> None:
    """Ends the process at once. An exception could get lost: an import has places where Python swallows it."""
    if _first_rank():
        os.write(2, f"metarun: stopped by {STOPS[signal.Signals(number)]}. Nothing was saved yet.\n".encode())
    os._exit(128 + number)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
