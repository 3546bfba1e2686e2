"""Validation over training steps as a picture: a panel for each protocol and metric, a line for each group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from metarun.errors import UserError
from metarun.metrics import axis, scaled, telling
from metarun.report.compare import Comparison, Group, Section
from metarun.report.runs import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#6d28d9", "#475569")
DASHES = ("-", "--", ":", "-.")  # after the last colour
ACROSS = 3  # panels in a row
WIDEST = 64  # letters of a name that fit below a panel

Points = dict[int, list[float]]  # step -> the value of every seed, as it is shown


@dataclass(frozen=True)
class Panel:
    """One metric of those groups of a section that were trained, and so validated, on the same data."""

    section: Section
    groups: tuple[Group, ...]
    metric: str
    curves: tuple[Points, ...]  # of each group; empty for one that has none

    @property
    def bare(self) -> list[Group]:
        return [group for group, points in zip(self.groups, self.curves, strict=True) if not points]

    @property
    def title(self) -> str:
        """What the curves are of: not the data that the section is about, where that is tested on alone."""
        trained, tested = self.groups[0].trained, self.section.protocol["data"]
        return self.section.task_of(trained) + ("" if trained == tested else f"; tested on {tested}")


def write_plot(comparison: Comparison, file: Path) -> list[Group]:
    """Draws the file; returns the groups that have no curve of the metric that they are judged by."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = panels(comparison)
    if not found:
        raise UserError("repeated meta-tests have no curves to draw. Leave out --plot.")
    shown = [panel for panel in found if any(panel.curves)] or found[:1]
    columns = min(ACROSS, len(shown))
    rows = math.ceil(len(shown) / columns)
    names = max(len(panel.groups) for panel in shown)  # each takes a line below its panel
    figure = Figure(figsize=(1.4 + 5.6 * columns, (4.0 + 0.24 * names) * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        for place, (group, points) in enumerate(zip(panel.groups, panel.curves, strict=True)):
            style: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
            }
            _line(axes, group, points, style)
        _dress(axes, panel, len(comparison.sections) > 1)
    figure.savefig(file)
    return [group for panel in found if panel.metric == panel.section.protocol["metric"] for group in panel.bare]


def panels(comparison: Comparison) -> list[Panel]:
    """Of each section, and of each data set that its groups were trained on, the metric that they are judged by, then
    those of single heads. Repeated meta-tests were not trained and are left out."""
    found = []
    for section in comparison.sections:
        trained = [group for group in section.groups if not group.runs[0].again]
        for data in dict.fromkeys(group.trained for group in trained):
            groups = tuple(group for group in trained if group.trained == data)
            own = [_curves(group) for group in groups]
            judged = section.protocol["metric"]
            names = telling(dict.fromkeys(name for one in own for name in one))
            heads = [name for name in names if "/" in name and name != judged]
            found += [Panel(section, groups, name, tuple(o.get(name, {}) for o in own)) for name in (judged, *heads)]
    return found


def _curves(group: Group) -> dict[str, Points]:
    """By metric what all seeds have, at steps that all of them reached: another set of seeds would make a jump."""
    runs = [curves(run) for run in group.runs]
    found = {}
    for name in runs[0]:
        shared = set.intersection(*(set(run.get(name, ())) for run in runs))
        if shared:
            found[name] = {step: [scaled(name, run[name][step]) for run in runs] for step in sorted(shared)}
    return found


def _line(axes: Axes, group: Group, points: Points, style: dict[str, Any]) -> None:
    if not points:
        return
    steps = list(points)
    means = [sum(values) / len(values) for values in points.values()]
    several = len(group.runs) > 1
    if several:
        low, high = [min(v) for v in points.values()], [max(v) for v in points.values()]
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    label = group.label + (f" ({len(group.runs)} seeds)" if several else "")
    look = {"linewidth": 1.8, "marker": "o" if len(steps) < 30 else None, "markersize": 3.5, **style}
    axes.plot(steps, means, label=fill(label, WIDEST, break_on_hyphens=False), **look)


def _dress(axes: Axes, panel: Panel, lettered: bool) -> None:
    """Labels; the best group comes first in the legend as in the table."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("meta-steps")
    axes.set_ylabel(f"validation {axis(panel.metric)}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    title = f"{panel.section.letter}: {panel.title}" if lettered else panel.title
    band = any(len(group.runs) > 1 for group in panel.groups)
    axes.set_title(title + ("; mean and range over seeds" if band else ""), fontsize=10, loc="left")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12))
