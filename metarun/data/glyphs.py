"""Glyphs: alphabets of handwritten-looking characters, generated, in the spirit of Omniglot.

An alphabet is a bundle of habits. A character is a program: a few strokes, each led from node to node of a small
lattice along legs that are straight or bent. A drawing is that program carried out by an unsteady hand, which
shakes the lattice, misses its nodes and wavers between them. The plane is that of complex numbers (x + iy, y
downwards): to turn and to scale is to multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.data.cache import cached
from metarun.data.images import Collection, ImageData, split_classes

SIZE = 28
PEN = 1.43  # pixels
LATTICE = 5  # nodes along a side
STROKES, LEGS = 6, 4  # of a character, of a stroke: at most
POINTS = 16  # of a leg
CHUNK = 1024  # drawings rendered at once: bounds memory
SHARPEST = 1.4 * math.pi  # a leg that turned full circle would end where it starts
VERSION = 1  # of the generator: drawings of another one in the cache are stale

# Each alphabet draws its own value between the two: a mean, or the chance of a choice.
HABITS = {
    "strokes": (0.5, 2.5),  # after the first
    "legs": (0.2, 1.8),  # of a stroke, after the first
    "columns": (1.5, 4.5),
    "rows": (1.5, 4.5),
    "loose": (0.0, 0.12),  # how far a character's nodes lie from the lattice
    "near": (0.0, 1.5),  # preference of near nodes
    "upright": (0.0, 6.0),  # preference of upright and level legs
    "straight": (0.2, 0.9),  # legs that do not bend
    "bend": (0.5, 1.1),  # the turn of a leg that does, in π
    "smooth": (0.1, 0.7),  # legs that go on without a corner
    "rings": (0.0, 0.3),  # legs that bend back to where the one before began
    "roam": (0.1, 0.8),  # how readily legs lead to a node once more
    "join": (0.4, 1.0),  # strokes that begin at a node of an earlier one
    "repeat": (0.0, 0.35),  # strokes that repeat the one before, shifted
    "dots": (0.0, 0.1),
    "size": (14.0, 21.0),  # longer side of a character, in pixels
}

# Standard deviations of what a hand does differently each time; lengths in sides of the character.
HAND = {
    "care": 0.4,  # of the factor, in logarithms, on the next six
    "lattice": 0.05,  # of nodes, for all strokes that meet there
    "miss": 0.02,  # of a stroke's own nodes
    "waver": 0.01,  # between nodes
    "stroke": 0.05,  # turn, scale and shear of a stroke
    "bend": 0.1,  # of turns
    "slant": 0.07,  # turn, scale and shear of the whole
    "size": 0.12,
    "place": 1.3,  # pixels
    "pen": 0.05,
}


class Program(NamedTuple):
    """How R characters, or R drawings, are drawn."""

    lattice: Tensor  # complex [R, LATTICE²]: where the nodes lie
    nodes: Tensor  # int64 [R, STROKES, LEGS+1]: the nodes a stroke passes
    turn: Tensor  # [R, STROKES, LEGS]: by how much a leg changes direction, evenly along it; 0 is straight
    drawn: Tensor  # bool [R, STROKES, LEGS]
    size: Tensor  # [R]: longer side, in pixels


class Dice:
    """Random tensors from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def shift(self, *shape: int) -> Tensor:
        """Complex, with variance 1 in either direction."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.cfloat) * math.sqrt(2)

    def chance(self, p: Tensor, *more: int) -> Tensor:
        """True with probability p, `more` times for each entry of p [R]."""
        return self.uniform(len(p), *more) < p.view(-1, *[1] * len(more))

    def count(self, mean: Tensor, most: int, *more: int) -> Tensor:
        """1 plus a Poisson number."""
        mean = mean.view(-1, *[1] * len(more)).expand(-1, *more)
        return (1 + torch.poisson(mean.contiguous(), generator=self.generator)).clamp(max=most)

    def pick(self, weight: Tensor) -> Tensor:
        """An index for each row of weights [R, n]."""
        return torch.multinomial(weight, 1, generator=self.generator)[:, 0]


def habits(alphabets: int, dice: Dice) -> dict[str, Tensor]:
    """What each alphabet is like: a value [alphabets] for every entry of HABITS."""
    return {name: low + (high - low) * dice.uniform(alphabets) for name, (low, high) in HABITS.items()}


def invent(habit: Mapping[str, Tensor], dice: Dice) -> Program:
    """A character for each row of habits."""
    rows = len(habit["size"])
    side = torch.arange(LATTICE)
    lattice = torch.complex(side.repeat(LATTICE).float(), side.repeat_interleave(LATTICE).float())
    extent = torch.stack([habit["columns"], habit["rows"]]).floor().clamp(max=LATTICE - 1)
    inside = (lattice.real <= extent[0, :, None]) & (lattice.imag <= extent[1, :, None])
    nodes, turn = _strokes(lattice, inside, habit, dice)
    strokes = dice.count(habit["strokes"], STROKES)
    legs = dice.count(habit["legs"], LEGS, STROKES)
    legs[:, 0] += (strokes == 1) & (legs[:, 0] == 1)  # a lone stroke is more than one leg
    dot = dice.chance(habit["dots"], STROKES) & (torch.arange(STROKES) > 0)
    nodes = torch.where(dot[..., None], nodes[..., :1], nodes)
    legs = torch.where(dot, 1, legs)
    drawn = torch.arange(LEGS) < legs[..., None]
    drawn &= (torch.arange(STROKES) < strokes[:, None])[..., None]
    unit = lattice / extent.amax(0)[:, None] + habit["loose"][:, None] * dice.shift(rows, LATTICE**2)
    size = (habit["size"] * (0.2 * dice.normal(rows)).exp()).clamp(7, 24)
    return Program(unit, nodes, turn, drawn, size)


def _strokes(lattice: Tensor, inside: Tensor, habit: Mapping[str, Tensor], dice: Dice) -> tuple[Tensor, Tensor]:
    """Leads every stroke from node to node."""
    rows, row = len(inside), torch.arange(len(inside))
    step = lattice - lattice[:, None]
    level = ((step.real == 0) | (step.imag == 0)).float()
    weight = torch.exp(-habit["near"].view(-1, 1, 1) * step.abs()) * (1 + habit["upright"].view(-1, 1, 1) * level)
    weight = weight * inside[:, None] * (step.abs() > 0) + 1e-9 * inside[:, None]
    visited = torch.zeros(rows, LATTICE**2)
    nodes = torch.zeros(rows, STROKES, LEGS + 1, dtype=torch.long)
    turn = torch.zeros(rows, STROKES, LEGS)
    for s in range(STROKES):
        joins = dice.chance(habit["join"]) if s else torch.zeros(rows, dtype=torch.bool)
        nodes[:, s, 0] = dice.pick(torch.where(joins[:, None], visited, inside.float()))
        for p in range(LEGS):
            here = nodes[:, s, p]
            there = dice.pick(weight[row, here])
            bend = (dice.uniform(rows).round() * 2 - 1) * habit["bend"] * (0.7 + 0.6 * dice.uniform(rows)) * math.pi
            bend = torch.where(dice.chance(habit["straight"]), 0, bend)
            if p:
                before = nodes[:, s, p - 1]
                corner = torch.angle((lattice[there] - lattice[here]) / (lattice[here] - lattice[before]))
                flow = corner - turn[:, s, p - 1] / 2
                flow = 2 * (flow - 2 * math.pi * (flow / (2 * math.pi)).round())
                smooth = dice.chance(habit["smooth"]) & (flow.abs() < SHARPEST)
                bend = torch.where(smooth, flow, bend)
                ring = dice.chance(habit["rings"]) & (turn[:, s, p - 1].abs() > 0.5 * math.pi)
                bend = torch.where(ring, turn[:, s, p - 1], bend)
                there = torch.where(ring, before, there)
            nodes[:, s, p + 1], turn[:, s, p] = there, bend.clamp(-SHARPEST, SHARPEST)
            weight[row, here, there] *= 0.01  # not the same leg twice
            weight[row, there, here] *= 0.01
            weight[row, :, there] *= habit["roam"][:, None]
        if s:
            way = (torch.tensor([1, LATTICE, -1, -LATTICE]))[(dice.uniform(rows) * 4).long()]
            moved = nodes[:, s - 1] + way[:, None]
            ok = (moved >= 0) & (moved < LATTICE**2)
            moved = moved.clamp(0, LATTICE**2 - 1)
            ok &= inside.gather(1, moved) & ((lattice[moved] - lattice[nodes[:, s - 1]]).abs() == 1)
            again = dice.chance(habit["repeat"]) & ok.all(1)
            nodes[:, s] = torch.where(again[:, None], moved, nodes[:, s])
            turn[:, s] = torch.where(again[:, None], turn[:, s - 1], turn[:, s])
        visited.scatter_(1, nodes[:, s, :2], 1)
    return nodes, turn


def trace(program: Program, knots: Tensor) -> Tensor:
    """The pen's way through the knots [R, STROKES, LEGS+1]: complex [R, STROKES, LEGS, POINTS+1].

    A leg that turns by τ is an arc of a circle: at the share u of it, sin(uτ/2) / sin(τ/2) e^{i(u−1)τ/2} of its chord.
    """
    u = torch.linspace(0, 1, POINTS + 1)
    half = torch.where(program.turn.abs() < 1e-3, 1e-3, program.turn)[..., None] / 2
    arc = torch.polar(torch.sin(u * half) / torch.sin(half), (u - 1) * half)
    start, chord = knots[..., :-1, None], knots.diff(dim=-1)[..., None]
    return start + chord * arc


def draw(program: Program, dice: Dice) -> Tensor:
    """A fresh drawing of every row of the program: uint8 [R, 1, SIZE, SIZE]."""
    rows = len(program.size)
    care = (HAND["care"] * dice.normal(rows)).exp()[:, None]  # some drawings are sloppier than others
    lattice = program.lattice + HAND["lattice"] * care * dice.shift(rows, LATTICE**2)
    knots = lattice.gather(1, program.nodes.flatten(1)).view(program.nodes.shape)
    knots = knots + HAND["miss"] * care[..., None] * dice.shift(*knots.shape)
    knots = _affine(knots, HAND["stroke"] * care, dice)
    turn = program.turn * (1 + HAND["bend"] * dice.normal(*program.turn.shape)) + HAND["bend"] * care[
        ..., None
    ] * dice.normal(*program.turn.shape)
    program = program._replace(turn=turn.clamp(-1.2 * SHARPEST, 1.2 * SHARPEST))
    path = trace(program, knots)
    path = _waver(path, HAND["waver"] * care[..., None, None], dice)
    path = _affine(path.flatten(1)[:, None], torch.full((rows, 1), HAND["slant"]), dice)[:, 0].view(path.shape)
    centre, side = _box(path, program.drawn)
    scale = program.size * (HAND["size"] * dice.normal(rows)).exp() / side.clamp(min=0.15)
    home = torch.complex(torch.tensor(13.1), torch.tensor(13.0)) + HAND["place"] * dice.shift(rows)
    path = (path - centre.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1) + home.view(-1, 1, 1, 1)
    owner = torch.arange(rows)[:, None, None].expand(program.drawn.shape)[program.drawn]
    legs = path[program.drawn]
    width = PEN * (HAND["pen"] * dice.normal(rows)).exp()
    owner = owner.repeat_interleave(POINTS)
    shade = ink(legs[:, :-1].flatten(), legs[:, 1:].flatten(), owner, width[owner], rows)
    return (shade * 255).round().byte()[:, None]


def _affine(path: Tensor, amount: Tensor, dice: Dice) -> Tensor:
    """Turns, scales and shears every stroke [R, S, n] about its middle: z -> (1+a)z + b z̄."""
    middle = path.mean(-1, keepdim=True)
    a, b = (amount[..., None] * dice.shift(*path.shape[:2], 1) for _ in range(2))
    return path + a * (path - middle) + b * (path - middle).conj()


def _waver(path: Tensor, amount: Tensor, dice: Dice) -> Tensor:
    """Leads every stroke a little astray, smoothly."""
    rows = len(path) * STROKES
    coarse = dice.normal(rows, 2, LEGS * 2 + 1)
    fine = F.interpolate(coarse, size=LEGS * POINTS + 1, mode="linear", align_corners=True).view(
        len(path), STROKES, 2, -1
    )
    astray = torch.complex(fine[:, :, 0], fine[:, :, 1])
    astray = astray.unfold(-1, POINTS + 1, POINTS)
    return path + amount * astray


def _box(path: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The centre (complex [R]) and the longer side [R] of the box around what is drawn."""
    xy = torch.view_as_real(path).flatten(1, 3)
    there = drawn[..., None].expand(path.shape).flatten(1)[..., None]
    low = torch.where(there, xy, torch.inf).amin(1)
    high = torch.where(there, xy, -torch.inf).amax(1)
    return torch.view_as_complex((low + high) / 2), (high - low).amax(1)


def ink(start: Tensor, end: Tensor, owner: Tensor, width: Tensor, count: int) -> Tensor:
    """Draws segments (complex [G], in pixels, of a few pixels) of pen widths [G] on image owner [G]: [count, SIZE, SIZE].

    A pixel's shade is the share of it that the stroke covers, taken across the stroke; strokes do not add up.
    """
    near = torch.arange(-2.0, 3.0)
    middle = (start + end) / 2
    x = middle.real.round()[:, None] + near.repeat(5)
    y = middle.imag.round()[:, None] + near.repeat_interleave(5)
    along = end - start
    dx, dy = along.real[:, None], along.imag[:, None]
    gx, gy = x - start.real[:, None], y - start.imag[:, None]
    share = ((gx * dx + gy * dy) / (dx * dx + dy * dy).clamp(min=1e-9)).clamp(0, 1)
    distance = torch.hypot(gx - share * dx, gy - share * dy)
    width = width[:, None]
    shade = (width / 2 + 0.5 - distance).clamp(min=0).minimum(width.clamp(max=1))
    outside = (x < 0) | (x >= SIZE) | (y < 0) | (y >= SIZE)
    place = owner[:, None] * SIZE**2 + (y * SIZE + x).long()
    canvas = torch.zeros(count * SIZE**2 + 1)
    canvas.scatter_reduce_(0, place.masked_fill(outside, count * SIZE**2).flatten(), shade.flatten(), "amax")
    return canvas[:-1].view(count, SIZE, SIZE)
