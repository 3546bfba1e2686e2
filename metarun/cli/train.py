"""`metarun [key=value ...]`: runs what was asked for, alone or as a sweep."""

from __future__ import annotations

import logging

from metarun.cli.compose import each_job
from metarun.settings import Job


def main(arguments: list[str]) -> int:
    """Trains and tests, and returns the exit code."""
    logging.raiseExceptions = False  # a full disk is told once, not at each line of run.log
    return each_job(arguments, _run)


def _run(job: Job) -> int:
    from metarun.run import run  # torch takes a second to import; --cfg job must not wait for it

    run(job)
    return 0
