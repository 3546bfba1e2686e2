"""The console script: hands what was typed to the file that answers it."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import metarun
from metarun.cli import VERBS


def main() -> int:
    """Answers the command line and returns the exit code."""
    words = sys.argv[1:]
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
