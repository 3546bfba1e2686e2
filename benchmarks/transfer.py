"""How far each transfer helps beside training from scratch: a figure of finished runs of algo=transfer.

python -m benchmarks.transfer runs/shots runs/digits figure.png

Runs are told apart by `algo.mode`, and by `data.examples` where their data set has that, else by `data.shots`; panels
by the data set that a source, or the source of a source, was trained on. Seeds of one mode and one number of images are
one point. A gain is taken over the runs without a source that were tested on the same episodes; its interval is over
pairs of runs of one seed, or where there is one alone, over tasks, as if both had been tested on different ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import command
from metarun.errors import UserError
from metarun.metrics import axis, cell, scaled
from metarun.report.interval import mean_t
from metarun.report.runs import Run, find

SCRATCH, MODES = "scratch", ("scratch", "feature", "model", "target")
COLOURS = dict(zip(MODES, ("#475569", "#2563eb", "#d97706", "#059669"), strict=True))
Points = dict[str, dict[str, tuple[float, float]]]  # mode -> number of images -> mean and half an interval


@dataclass(frozen=True)
class Panel:
    """Runs on one data set that differ in what they took over, and in how many images they had."""

    title: str
    metric: str
    images: str  # what their number is of
    scores: Points
    gains: Points

    @property
    def places(self) -> list[str]:
        """Numbers of images, the least first; all that there are, last."""
        return sorted({n for points in self.scores.values() for n in points}, key=_size)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("figure", metavar="FILE.png", type=Path)
    args = parser.parse_args(argv)
    runs = [
        run for run in find(args.folders) if isinstance(run, Run) and run.names["algo"] == "transfer" and not run.again
    ]
    if not runs:
        raise UserError(f"no finished run of algo=transfer in {', '.join(map(str, args.folders))}. Name other folders.")
    found = panels(runs)
    for panel in found:
        _print(panel)
    draw(found, args.figure)
    print(f"-> {args.figure}")


def panels(runs: Iterable[Run]) -> list[Panel]:
    """One for each data set that was tested, and each that a source was first trained on; those from scratch in all."""
    groups: dict[tuple[str, str, bool], dict[str, list[Run]]] = {}
    for run in runs:
        kind = (run.tested, run.metric, "data.examples" in run.settings)
        groups.setdefault(kind, {}).setdefault(_origin(run), []).append(run)
    found = []
    for (tested, metric, examples), by_origin in groups.items():
        base = by_origin.pop("", [])
        for origin, own in by_origin.items() or [("", [])]:
            title = f"{origin} to {tested}" if origin else tested
            found.append(_panel(title, metric, examples, [*base, *own]))
    return found


def _origin(run: Run) -> str:
    """The data set of the run at the end of the chain of sources; empty without one."""
    place, data = run.settings.get("algo.source", "null"), ""
    seen = set[str]()
    while place != "null" and place not in seen:
        seen.add(place)
        source = next((one for one in find([Path(place)]) if isinstance(one, Run) and not one.again), None)
        if source is None:
            return Path(place).name
        place, data = source.settings.get("algo.source", "null"), source.names["data"]
    return data


def _panel(title: str, metric: str, examples: bool, runs: list[Run]) -> Panel:
    key, images = ("data.examples", "training images of each class") if examples else ("data.shots", "shots")
    grid: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        mode, size = (run.settings.get(name, "null") for name in ("algo.mode", key))
        points = grid.setdefault(SCRATCH if mode == "null" else mode, {})
        others = points.setdefault("all" if size == "null" else size, [])
        if twice := next((other for other in others if other.seed == run.seed), None):
            raise UserError(f"{twice.folder} and {run.folder} are one point, and have one seed. Leave out one of them.")
        others.append(run)
    scores = {mode: {n: _mean(own) for n, own in row.items()} for mode, row in grid.items()}
    base = grid.get(SCRATCH, {})
    gains = {
        mode: {n: _gain(own, base[n]) for n, own in row.items() if n in base}
        for mode, row in grid.items()
        if mode != SCRATCH
    }
    return Panel(title, metric, images, scores, gains)


def _mean(runs: list[Run]) -> tuple[float, float]:
    """Over runs, or of one over its tasks."""
    return (runs[0].test.mean, runs[0].test.ci95) if len(runs) == 1 else mean_t([run.test.mean for run in runs])


def _gain(runs: list[Run], base: list[Run]) -> tuple[float, float]:
    """How much more than the base of the same seed; of the mean base where there is none."""
    if strange := {run.protocol.get("episodes") for run in (*runs, *base)} - {base[0].protocol.get("episodes")}:
        raise UserError(
            f"{runs[0].folder} and {base[0].folder} were tested on different episodes ({len(strange) + 1} sets), so "
            "that no gain can be told. Test both alike."
        )
    own = {run.seed: run.test.mean for run in base}
    pairs = [run.test.mean - own.get(run.seed, fmean(own.values())) for run in runs]
    if len(pairs) > 1:
        return mean_t(pairs)
    return pairs[0], math.hypot(runs[0].test.ci95, base[0].test.ci95)


def draw(found: list[Panel], file: Path) -> None:
    """A column for each panel: what was reached above, and below it how much more that is than from scratch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(found), 6.4), dpi=150, layout="constrained")
    rows = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for column, panel in enumerate(found):
        above, below = rows[0][column], rows[1][column]
        _lines(above, panel, panel.scores)
        _lines(below, panel, panel.gains)
        above.set_title(panel.title, fontsize=10, loc="left")
        above.set_ylabel(f"test {axis(panel.metric)}")
        below.set_ylabel("gain over training from scratch")
        below.axhline(0.0, color=COLOURS[SCRATCH], linewidth=0.8)
        below.set_xticks(range(len(panel.places)), panel.places)
        below.set_xlabel(panel.images)
        above.legend(frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _lines(axes: Any, panel: Panel, points: Points) -> None:
    """Modes side by side, so that intervals can be told apart."""
    for mode in (mode for mode in MODES if mode in points):
        row = points[mode]
        names = [n for n in panel.places if n in row]
        shift = 0.06 * (MODES.index(mode) - 1.5)
        means, widths = ([scaled(panel.metric, row[n][part]) for n in names] for part in (0, 1))
        places = [panel.places.index(n) + shift for n in names]
        axes.errorbar(places, means, widths, fmt="o-", color=COLOURS[mode], capsize=2, markersize=4, label=mode)
    axes.spines[["top", "right"]].set_visible(False)


def _print(panel: Panel) -> None:
    print(f"{panel.title}: {panel.metric} by {panel.images}, and gain")
    for mode in (mode for mode in MODES if mode in panel.scores):
        for n in panel.places:
            if n in panel.scores[mode]:
                gain = panel.gains.get(mode, {}).get(n)
                told = f"  {cell(panel.metric, *gain, sign='+')}" if gain else ""
                print(f"  {mode:<9}{n:>5}  {cell(panel.metric, *panel.scores[mode][n])}{told}")


def _size(n: str) -> float:
    return math.inf if n == "all" else float(n)


if __name__ == "__main__":
    command.answering(main)
