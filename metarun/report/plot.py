"""Validation over training steps as a picture: a panel for each protocol, a line for each group."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from metarun.report.compare import Comparison, Group, Section
from metarun.report.runs import curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#6d28d9", "#475569")
DASHES = ("-", "--", ":", "-.")  # after the last colour
ACROSS = 3  # panels in a row
WIDEST = 64  # letters of a name that fit below a panel


def write_plot(comparison: Comparison, file: Path) -> list[Group]:
    """Draws the file; returns the groups that have no curve to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {id(group): _curves(group) for group in comparison.groups}
    sections = [s for s in comparison.sections if any(curves[id(g)] for g in s.groups)] or comparison.sections[:1]
    columns = min(ACROSS, len(sections))
    rows = math.ceil(len(sections) / columns)
    names = max(len(section.groups) for section in sections)  # each takes a line below its panel
    figure = Figure(figsize=(1.4 + 5.6 * columns, (4.0 + 0.24 * names) * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, section in enumerate(sections):
        axes = figure.add_subplot(rows, columns, number + 1)
        for place, group in enumerate(section.groups):
            style: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
            }
            _line(axes, group, curves[id(group)], style)
        _dress(axes, section, len(comparison.sections) > 1)
    figure.savefig(file)
    return [group for group in comparison.groups if not curves[id(group)]]


def _curves(group: Group) -> dict[int, list[float]]:
    """step -> the value of every seed, at steps that all seeds reached: another set of seeds would make a jump."""
    runs = [curve(run) for run in group.runs]
    shared = set.intersection(*(set(points) for points in runs))
    scale = 100 if group.metric == "accuracy" else 1
    return {step: [scale * points[step] for points in runs] for step in sorted(shared)}


def _line(axes: Axes, group: Group, points: dict[int, list[float]], style: dict[str, Any]) -> None:
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


def _dress(axes: Axes, section: Section, lettered: bool) -> None:
    """Labels; the best group comes first in the legend as in the table."""
    from matplotlib.ticker import MaxNLocator

    metric = section.protocol["metric"]
    axes.set_xlabel("meta-steps")
    axes.set_ylabel("validation accuracy (%)" if metric == "accuracy" else f"validation {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    title = f"{section.letter}: {section.task}" if lettered else section.task
    band = any(len(group.runs) > 1 for group in section.groups)
    axes.set_title(title + ("; mean and range over seeds" if band else ""), fontsize=10, loc="left")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12))
