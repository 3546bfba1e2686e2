"""Δm: what training tasks together gains over training each alone.

    Δm = mean over heads of  sign · (M − S) / S

M is a run's main metric of a head, S its mean over the seeds of single-task training; sign is -1 where less is better.

Maninis, Radosavovic, Kokkinos: Attentive Single-Tasking of Multiple Tasks. CVPR 2019, arXiv 1904.08918.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from metarun.metrics import TABLE, metric, telling
from metarun.report.interval import mean_t
from metarun.report.runs import Run

SINGLE = "algo.single_task"  # the setting of a run whose heads share nothing


def is_single(run: Run) -> bool:
    return run.settings.get(SINGLE) == "True"


def main_metrics(run: Run) -> list[str]:
    """The main metric of each head: `digit/accuracy`, `ink/mse`; of a single head what the run is judged by."""
    named = [name for name in telling(run.scores) if "/" in name and name.rpartition("/")[2] in TABLE]
    return named or [run.metric]


def improvement(runs: Sequence[Run], single: Sequence[Run]) -> tuple[float, float]:
    """Δm as a fraction, and its 95% interval over the seeds of `runs`; NaN where it has no value."""
    names = main_metrics(single[0])
    if any(name not in run.scores for run in (*runs, *single) for name in names):
        return math.nan, math.nan
    alone = {name: fmean(run.scores[name].mean for run in single) for name in names}
    if not all(alone.values()):  # of an error of 0 nothing is a share
        return math.nan, math.nan
    gains = [fmean(metric(n).sign * (run.scores[n].mean / alone[n] - 1) for n in names) for run in runs]
    return mean_t(gains)
