"""Strokes of a pen: bent legs in the complex plane (x + iy, y downwards), and the ink they leave on pixels."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 28  # pixels of an image, each way
POINTS = 16  # segments of a drawn leg


def arcs(knots: Tensor, turn: Tensor) -> Tensor:
    """Legs from knot to knot [..., n+1], turning by τ [..., n]: arcs of circles, complex [..., n, POINTS+1].

    At the share u of such a leg, its chord is multiplied by sin(uτ/2) / sin(τ/2) · exp(i(u−1)τ/2).
    """
    u = torch.linspace(0, 1, POINTS + 1)
    half = torch.where(turn.abs() < 1e-3, 1e-3, turn)[..., None] / 2
    way = torch.polar(torch.sin(u * half) / torch.sin(half), (u - 1) * half)
    return knots[..., :-1, None] + knots.diff(dim=-1)[..., None] * way


def ink(start: Tensor, end: Tensor, owner: Tensor, width: Tensor, count: int) -> Tensor:
    """Draws short segments (complex [G], in pixels) with pens of `width` [G] on image `owner` [G]: [count, SIZE, SIZE].

    A pixel's shade is how much of it the stroke covers, seen across the stroke; where strokes meet, the darker counts.
    """
    near = torch.arange(-2.0, 3.0)  # a segment reaches no farther than 2 pixels from the one in its middle
    middle, chord = (start + end) / 2, (end - start)[:, None]
    x = middle.real.round()[:, None] + near.repeat(5)
    y = middle.imag.round()[:, None] + near.repeat_interleave(5)
    gap_x, gap_y = x - start.real[:, None], y - start.imag[:, None]  # not complex: half as fast here
    along = ((gap_x * chord.real + gap_y * chord.imag) / chord.abs().square().clamp(min=1e-9)).clamp(0, 1)
    distance = torch.hypot(gap_x - along * chord.real, gap_y - along * chord.imag)
    shade = (width[:, None] / 2 + 0.5 - distance).clamp(min=0).minimum(width[:, None].clamp(max=1))
    outside = (x < 0) | (x >= SIZE) | (y < 0) | (y >= SIZE)
    place = (owner[:, None] * SIZE**2 + y.long() * SIZE + x.long()).masked_fill(outside, count * SIZE**2)
    canvas = torch.zeros(count * SIZE**2 + 1)  # the last one catches what falls outside
    canvas.scatter_reduce_(0, place.flatten(), shade.flatten(), "amax")
    return canvas[:-1].view(count, SIZE, SIZE)
