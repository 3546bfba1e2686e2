"""Pictures of a run: scores by adaptation step, and what an episode looks like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metarun.metrics import Score, axis, by_step, metric, scaled, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = 0.5  # shows beside white paper and beside black
MOST = 10  # images of a way in a picture, to learn from and to be judged by
COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#6d28d9", "#475569")


def adaptation_curve(test: dict[str, Any]) -> Figure:
    """Scores by adaptation step with their 95% confidence bands: a panel for accuracies, one for squared errors."""
    from matplotlib.figure import Figure  # the object itself, not pyplot: no global state, no display needed

    rows = by_step(test)
    names = telling(next(iter(rows.values())))
    names = [name for name in names if not name.endswith("loss")] or names
    panels = {metric(name): [other for other in names if metric(other) == metric(name)] for name in names}
    figure = Figure(figsize=(6.4 * len(panels), 4.0), dpi=120, layout="constrained")
    for number, alike in enumerate(panels.values()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for place, name in enumerate(alike):
            _band(axes, {step: row[name] for step, row in rows.items()}, name, COLOURS[place % len(COLOURS)])
        _dress(axes, list(rows), alike)
    return figure


def pairs(labels: Sequence[str], cells: list[list[float]], name: str) -> Figure:
    """A square of colours from -1 to 1, a row and a column for each head; with its numbers where there is room."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    count, short = len(labels), [label if len(label) <= 20 else f"{label[:19]}…" for label in labels]
    side = min(3.2 + 0.45 * count, 12.0)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    plain = LinearSegmentedColormap.from_list("pairs", [COLOURS[1], "white", COLOURS[0]])
    colours = plain.with_extremes(bad="#d1d5db")  # pairs that never met
    image = axes.imshow(cells, cmap=colours, vmin=-1, vmax=1)
    places = range(count)
    axes.set_xticks(places, labels=short)
    axes.set_yticks(places, labels=short)
    if count > 4 or max(map(len, short)) > 8:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if count <= 12:
        for row, column in itertools.product(places, places):
            value = cells[row][column]
            told, colour = (
                ("–", "black") if math.isnan(value) else (f"{value:.2f}", "white" if abs(value) > 0.7 else "black")
            )
            axes.text(column, row, told, ha="center", va="center", fontsize=9, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set_title(f"{name} of the heads' gradients", fontsize=10, loc="left")
    return figure


def _band(axes: Axes, points: dict[int, Score], name: str, colour: str) -> None:
    means = [scaled(name, score.mean) for score in points.values()]
    cis = [0.0 if math.isnan(score.ci95) else scaled(name, score.ci95) for score in points.values()]
    low = [mean - ci for mean, ci in zip(means, cis, strict=True)]
    high = [mean + ci for mean, ci in zip(means, cis, strict=True)]
    axes.fill_between(list(points), low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(list(points), means, color=colour, marker="o", markersize=5, linewidth=1.8, label=name.replace("/", " "))


def _dress(axes: Axes, steps: list[int], names: list[str]) -> None:
    """Labels, and ticks where there really are steps."""
    if max(steps) > 20:
        axes.set_xscale("symlog", linthresh=5)  # most happens in the first steps
    every = -(-len(steps) // 16)
    axes.set_xticks(steps[::every], labels=[str(step) for step in steps[::every]])
    axes.minorticks_off()
    axes.set_xlabel("adaptation steps")
    axes.set_ylabel("test " + axis(names[0] if len(names) == 1 else names[0].rpartition("/")[2]))
    axes.set_title("test, mean over tasks with 95% confidence interval", fontsize=10, loc="left")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(frameon=False)


def episode_picture(support: Tensor, query: Tensor, ways: int) -> Tensor:
    """One episode as one picture [C, H, W]: a row per way, support left of the gap, query right of it.

    Both are [K*N, C, H, W], shot by shot: each N rows in a row hold one image of every way. Ten of each are shown.
    """
    known, asked = by_way(support, ways)[:, :MOST], by_way(query, ways)[:, :MOST]
    return grid(torch.cat([known, asked], dim=1), left=known.shape[1])


def by_way(images: Tensor, ways: int) -> Tensor:
    """[K*N, C, H, W], shot by shot -> [N, K, C, H, W]."""
    return images.unflatten(0, (-1, ways)).transpose(0, 1)


def grid(images: Tensor, left: int = 0) -> Tensor:
    """Tile [rows, cols, C, H, W] to [C, H, W] in [0, 1], with a wide gap after the first `left` columns."""
    images = _displayable(images.detach().cpu())
    height, width = images.shape[-2:]
    scale = max(1, 64 // max(height, width))  # TensorBoard shows pixels as they are: make 28 legible
    images = images.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    gap = max(2, width * scale // 16)
    cells = torch.nn.functional.pad(images, (gap, gap, gap, gap), value=GREY)
    strips = [torch.cat(list(column), dim=-2) for column in cells.unbind(1)]  # each [C, rows * H, W]
    if 0 < left < len(strips):
        strips.insert(left, strips[0].new_full((*strips[0].shape[:2], 6 * gap), GREY))
    return torch.cat(strips, dim=-1)


def _displayable(images: Tensor) -> Tensor:
    """Floats in [0, 1] with one or three channels: normalised images are stretched, odd channels averaged."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    low, high = images.aminmax()
    if low < 0 or high > 1:
        images = (images - low) / (high - low).clamp_min(1e-12)
    return images if images.shape[-3] in (1, 3) else images.mean(dim=-3, keepdim=True)
