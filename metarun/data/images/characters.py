"""Invented characters: an alphabet is a bundle of habits, a character a program of strokes.

A stroke is led from node to node of a small lattice along legs that are straight or bent. The plane is that of complex
numbers (x + iy, y downwards): to turn and to scale is to multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.engine.device import free_memory
from metarun.errors import UserError

SIDE = 5  # nodes of the lattice, each way
GRID = torch.tensor([complex(x, y) for y in range(SIDE) for x in range(SIDE)])
STROKES, LEGS = 6, 4  # at most: of a character, of a stroke
SHARPEST = 1.4 * math.pi  # a leg that turned full circle would end where it begins
SHARES = (0.06, 0.26)  # of the alphabets, for val and test: as Omniglot's 100 and 423 of 1623 characters
CHARACTER, DRAWING = 12_000, 1_200  # bytes of memory that one takes while all are invented
PEN, SMALLEST, LARGEST = 1.43, 7, 24  # pixels, as measured on Omniglot

# Each alphabet draws its own value between the two: a mean, or the chance of a choice.
HABITS = {
    "strokes": (0.5, 2.2),  # after the first
    "legs": (0.2, 1.8),  # of a stroke, after the first
    "columns": (2.0, 5.0),  # cells of the lattice it writes in
    "rows": (2.0, 5.0),
    "loose": (0.0, 0.12),  # how far a character's nodes lie from the lattice
    "near": (0.0, 1.5),  # preference of near nodes
    "upright": (0.0, 6.0),  # preference of upright and level legs
    "again": (0.05, 0.6),  # readiness to come to a node once more
    "straight": (0.2, 0.9),  # legs that do not bend
    "bend": (0.5, 1.1),  # the turn of a leg that does, in π
    "smooth": (0.1, 0.7),  # legs that go on without a corner
    "rings": (0.0, 0.2),  # bent legs that close the circle
    "join": (0.4, 1.0),  # strokes that begin at a node of an earlier one
    "repeat": (0.0, 0.35),  # strokes that repeat the one before, beside it
    "dots": (0.0, 0.1),
    "size": (14.0, 21.0),  # a character's longer side, in pixels
}

Habit = Mapping[str, Tensor]  # what each of R alphabets, or the alphabet of each of R characters, is like


class Shape(NamedTuple):
    """How much there is."""

    alphabets: int
    characters: int  # of an alphabet
    drawings: int  # of a character

    def split(self) -> dict[str, range]:
        """The characters of each split: whole alphabets. They come in no order, so that the first can train and the
        last test."""
        val, test = (max(1, round(share * self.alphabets)) for share in SHARES)
        a, b, c = ((self.alphabets - rest) * self.characters for rest in (val + test, test, 0))
        return {"train": range(a), "val": range(a, b), "test": range(b, c)}

    def split_in_words(self, seed: int) -> str:
        """The same for a result's protocol."""
        sizes = "/".join(str(len(chosen)) for chosen in self.split().values())
        return f"by alphabet: {sizes} characters (seed {seed})"

    def check_memory(self) -> None:
        """Refuses what cannot be invented here."""
        needed = self.alphabets * self.characters * (CHARACTER + self.drawings * DRAWING)
        free = free_memory(torch.device("cpu"))
        if needed > free:
            raise UserError(
                f"data.alphabets={self.alphabets} of data.characters={self.characters} with "
                f"data.drawings={self.drawings} take {needed / 1e9:,.1f} GB of memory to invent, and "
                f"{free / 1e9:.1f} GB are free. Lower one of them."
            )


@dataclass(frozen=True)
class Dice:
    """Random tensors from one generator."""

    generator: torch.Generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def shift(self, *shape: int) -> Tensor:
        """Complex, with variance 1 in each direction."""
        return torch.complex(self.normal(*shape), self.normal(*shape))

    def chance(self, p: Tensor, *more: int) -> Tensor:
        """True with probability p [R]: [R, more]."""
        return self.uniform(len(p), *more) < p.view(-1, *[1] * len(more))

    def count(self, mean: Tensor, most: int, *more: int) -> Tensor:
        """1 plus a Poisson number of that mean [R]: int64 [R, more]."""
        mean = mean.view(-1, *[1] * len(more)).repeat(1, *more)
        return (1 + torch.poisson(mean, generator=self.generator)).long().clamp(max=most)

    def pick(self, weight: Tensor) -> Tensor:
        """An index into each row of weights [R, n]."""
        return torch.multinomial(weight, 1, generator=self.generator)[:, 0]


class Program(NamedTuple):
    """How R characters, or R drawings, are drawn."""

    lattice: Tensor  # complex [R, SIDE²]: where the nodes lie, in sides of the character
    nodes: Tensor  # int64 [R, STROKES, LEGS+1]: the nodes a stroke passes
    turn: Tensor  # [R, STROKES, LEGS]: how far a leg changes its direction, evenly all along; 0 is straight
    drawn: Tensor  # bool [R, STROKES, LEGS]
    size: Tensor  # [R]: longer side, in pixels
    pen: Tensor  # [R]: its width, in pixels
    slant: Tensor  # [R]: of the whole, how far it leans to the right for each step up


def programs(shape: Shape, habits: Mapping[str, tuple[float, float]], dice: Dice) -> Program:
    """One for each drawing, which all drawings of a character share."""
    habit = {name: low + (high - low) * dice.uniform(shape.alphabets) for name, (low, high) in habits.items()}
    habit = {name: value.repeat_interleave(shape.characters) for name, value in habit.items()}
    return Program(*(part.repeat_interleave(shape.drawings, 0) for part in invent(habit, dice)))


def invent(habit: Habit, dice: Dice) -> Program:
    """A character for each row of habits."""
    rows = len(habit["size"])
    cells = torch.stack([habit["columns"], habit["rows"]], 1).long().clamp(1, SIDE - 1)
    inside = (GRID.real <= cells[:, :1]) & (GRID.imag <= cells[:, 1:])
    strokes = dice.count(habit["strokes"], STROKES)
    legs = dice.count(habit["legs"], LEGS, STROKES)
    legs[:, 0] += (strokes == 1) & (legs[:, 0] == 1)  # a bare line would look like many others
    legs = legs * (torch.arange(STROKES) < strokes[:, None])
    nodes, turn = _strokes(inside, legs, habit, dice)
    dot = dice.chance(habit["dots"], STROKES) & (torch.arange(STROKES) > 0)
    nodes = torch.where(dot[..., None], nodes[..., :1], nodes)
    lattice = GRID / cells.amax(1, keepdim=True) + habit["loose"][:, None] * dice.shift(rows, SIDE**2)
    size = (habit["size"] * (0.2 * dice.normal(rows)).exp()).clamp(SMALLEST, LARGEST)
    drawn, pen = torch.arange(LEGS) < legs[..., None], torch.full_like(size, PEN)
    return Program(lattice, nodes, turn, drawn, size, pen, torch.zeros_like(size))


def _strokes(inside: Tensor, legs: Tensor, habit: Habit, dice: Dice) -> tuple[Tensor, Tensor]:
    """Nodes and turns of all strokes, one after the other: a later one knows where the earlier ones passed."""
    visits = torch.zeros(inside.shape)
    nodes, turns = list[Tensor](), list[Tensor]()
    for s in range(STROKES):
        joins = dice.chance(habit["join"]) & (s > 0)
        start = dice.pick(torch.where(joins[:, None], visits, inside.float()))
        stroke, turn = _stroke(start, inside, visits, habit, dice)
        if s > 0:
            aside, fits = _beside(nodes[-1], inside, dice)
            repeats = (dice.chance(habit["repeat"]) & fits)[:, None]
            stroke, turn = torch.where(repeats, aside, stroke), torch.where(repeats, turns[-1], turn)
        visits = visits.scatter_add(1, stroke, (torch.arange(LEGS + 1) <= legs[:, s, None]).float())
        nodes, turns = [*nodes, stroke], [*turns, turn]
    return torch.stack(nodes, 1), torch.stack(turns, 1)


def _stroke(start: Tensor, inside: Tensor, visits: Tensor, habit: Habit, dice: Dice) -> tuple[Tensor, Tensor]:
    """Leads one stroke from its start [R]: nodes [R, LEGS+1], turns [R, LEGS]."""
    nodes, turns = [start], list[Tensor]()
    for leg in range(LEGS):
        here = nodes[-1]
        visits = visits.scatter_add(1, here[:, None], torch.ones(len(here), 1))
        there = dice.pick(_pull(here, inside, visits, habit))
        either = dice.uniform(len(here)).round() * 2 - 1
        bend = either * habit["bend"] * (0.7 + 0.6 * dice.uniform(len(here))) * math.pi
        bend = torch.where(dice.chance(habit["straight"]), 0, bend)
        if leg > 0:
            before, last = nodes[-2], turns[-1]
            corner = ((GRID[there] - GRID[here]) / (GRID[here] - GRID[before])).angle() - last / 2
            flow = 2 * (corner - 2 * math.pi * (corner / (2 * math.pi)).round())  # sets off as the last leg arrives
            bend = torch.where(dice.chance(habit["smooth"]) & (flow.abs() < SHARPEST), flow, bend)
            ring = dice.chance(habit["rings"]) & (last.abs() > math.pi / 2)
            there, bend = torch.where(ring, before, there), torch.where(ring, last, bend)
        nodes.append(there)
        turns.append(bend.clamp(-SHARPEST, SHARPEST))
    return torch.stack(nodes, 1), torch.stack(turns, 1)


def _pull(here: Tensor, inside: Tensor, visits: Tensor, habit: Habit) -> Tensor:
    """How strongly each node draws a pen that stands `here`: [R, SIDE²]."""
    step = GRID - GRID[here, None]
    level = (step.real == 0) | (step.imag == 0)
    pull = torch.exp(-habit["near"][:, None] * step.abs()) * (1 + habit["upright"][:, None] * level)
    return pull * habit["again"][:, None] ** visits * inside * (step.abs() > 0)


def _beside(stroke: Tensor, inside: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """The stroke one cell right, left, down or up, and whether the lattice has room for it there."""
    step = torch.tensor([1, -1, SIDE, -SIDE])[(4 * dice.uniform(len(stroke))).long()]
    moved = (stroke + step[:, None]).clamp(0, SIDE**2 - 1)
    fits = inside.gather(1, moved) & ((GRID[moved] - GRID[stroke]).abs() == 1)
    return moved, fits.all(1)
