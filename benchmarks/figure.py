"""Curves of a measurement as one figure, a panel for each axis."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure


class Curve(NamedTuple):
    axis: str
    label: str
    sizes: list[int]
    values: list[float]


def draw(curves: list[Curve], ylabel: str, logarithmic: bool, path: Path) -> None:
    """Where both axes are logarithmic, proportional cost is a straight line of slope 1."""
    axes = list(dict.fromkeys(curve.axis for curve in curves))
    figure = Figure(figsize=(3.4 * len(axes), 3), layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        for _, label, sizes, values in (curve for curve in curves if curve.axis == axis):
            panel.plot(sizes, values, "o-", label=label)
        if logarithmic:
            panel.set(xscale="log", yscale="log")
            panel.minorticks_off()
        else:
            panel.set_ylim(0, 1.1 * max(max(c.values) for c in curves if c.axis == axis))
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel(axis)
        panel.legend(fontsize="small")
    figure.supylabel(ylabel, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
