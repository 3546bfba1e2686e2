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
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metarun.data.draw.source import ImageData, Within, split_classes
from metarun.data.draw.split import Turning, in_words
from metarun.data.images.cache import cached
from metarun.data.images.collection import Recipe
from metarun.data.images.mapped import Resident
from metarun.data.images.strokes import POINTS, SIZE, arcs, ink
from metarun.engine.device import free_memory
from metarun.engine.progress import watched
from metarun.types import COMPUTE_ONLY, AtLeast, Count, Natural, Seed, Span, UserError

VERSION = 1  # of the drawings: raise it when they change, so that caches do not keep the old ones
SIDE = 5  # nodes of the lattice, each way
GRID = torch.tensor([complex(x, y) for y in range(SIDE) for x in range(SIDE)])
STROKES, LEGS = 6, 4  # at most: of a character, of a stroke
SHARPEST = 1.4 * math.pi  # a leg that turned full circle would end where it begins
SHARES = (0.06, 0.26)  # of the alphabets, for val and test: as Omniglot's 100 and 423 of 1623 characters
CHUNK = 1024  # drawings rendered at once: bounds memory
CHARACTER, DRAWING = 12_000, 1_200  # bytes of memory that one takes while all are invented

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

# Standard deviations of what a hand does differently each time; lengths in sides of the character.
HAND = {
    "care": 0.4,  # of the logarithm of a factor on the next five: some drawings are sloppier than others
    "lattice": 0.03,  # of nodes, for all strokes that pass there
    "miss": 0.02,  # of a stroke's own nodes
    "waver": 0.01,  # between nodes
    "stroke": 0.03,  # turn, scale and shear of a stroke
    "bend": 0.1,  # of turns
    "slant": 0.1,  # turn, scale and shear of the whole
    "size": 0.15,
    "place": 1.3,  # pixels
    "pen": 0.05,
}
PEN, SMALLEST, LARGEST, CENTRE = 1.43, 7, 24, 13.1 + 13.0j  # pixels, as measured on Omniglot

Habit = Mapping[str, Tensor]  # what each of R alphabets, or the alphabet of each of R characters, is like


@dataclass(frozen=True)
class Glyphs:
    """Strokes are 1, paper is 0. A class is a character; with `rotations: true`, four are, in train and val."""

    alphabets: Annotated[int, AtLeast(3)]  # one for each split
    characters: Count  # of an alphabet
    drawings: Annotated[int, AtLeast(2)]  # of a character
    seed: Seed
    rotations: Turning
    ways: Span
    shots: Span
    queries: Count
    unlabelled: Natural
    within: Within
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> ImageData:
        shape = (self.alphabets, self.characters, self.drawings)
        key = {"version": VERSION, "shape": shape, "seed": self.seed}
        collection = cached("glyphs", key, lambda: generate(*shape, self.seed))
        classes = self._split()
        sizes = "/".join(str(len(chosen)) for chosen in classes.values())
        turned = {"train": self.rotations, "val": self.rotations, "test": False}
        protocol = {"split": f"by alphabet: {sizes} characters (seed {self.seed})", "rotations": in_words(turned)}
        data = split_classes("glyphs", collection, classes, turned, protocol, self.within, self.unlabelled)
        return data.to(device, self.resident)

    def _split(self) -> dict[str, range]:
        """Whole alphabets. They come in no order, so that the first can train and the last test."""
        val, test = (max(1, round(share * self.alphabets)) for share in SHARES)
        a, b, c = ((self.alphabets - rest) * self.characters for rest in (val + test, test, 0))
        return {"train": range(a), "val": range(a, b), "test": range(b, c)}


def generate(alphabets: int, characters: int, drawings: int, seed: int) -> Recipe:
    """All of it, from habits to images."""
    _check_memory(alphabets, characters, drawings)
    dice = Dice(torch.Generator().manual_seed(seed))
    habit = {name: low + (high - low) * dice.uniform(alphabets) for name, (low, high) in HABITS.items()}
    habit = {name: value.repeat_interleave(characters) for name, value in habit.items()}
    program = Program(*(part.repeat_interleave(drawings, 0) for part in invent(habit, dice)))
    chunks = zip(*(part.split(CHUNK) for part in program), strict=True)
    pieces = watched((draw(Program(*chunk), dice) for chunk in chunks), len(program.size), "drawing glyphs", len)
    groups = [f"alphabet{a:03}" for a in range(alphabets) for _ in range(characters)]
    names = [f"{group}/character{c % characters:03}" for c, group in enumerate(groups)]
    labels = torch.arange(len(names)).repeat_interleave(drawings)
    return Recipe(pieces, (1, SIZE, SIZE), labels, tuple(names), tuple(groups))


def _check_memory(alphabets: int, characters: int, drawings: int) -> None:
    needed, free = alphabets * characters * (CHARACTER + drawings * DRAWING), free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"data.alphabets={alphabets} of data.characters={characters} with data.drawings={drawings} take "
            f"{needed / 1e9:,.1f} GB of memory to invent, and {free / 1e9:.1f} GB are free. Lower one of them."
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
    return Program(lattice, nodes, turn, torch.arange(LEGS) < legs[..., None], size)


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


def draw(program: Program, dice: Dice) -> Tensor:
    """A fresh drawing of every row of the program: uint8 [R, 1, SIZE, SIZE]."""
    rows, drawn = len(program.size), program.drawn
    path = by_hand(program, dice)
    xy = torch.view_as_real(path).flatten(1, 3)
    marks = drawn[..., None].expand(path.shape).flatten(1)[..., None]
    low, high = torch.where(marks, xy, torch.inf).amin(1), torch.where(marks, xy, -torch.inf).amax(1)
    middle = torch.view_as_complex((low + high) / 2)
    scale = program.size * (HAND["size"] * dice.normal(rows)).exp() / (high - low).amax(1).clamp(min=0.15)
    home = CENTRE + HAND["place"] * dice.shift(rows)
    path = (path - middle.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1) + home.view(-1, 1, 1, 1)
    width = PEN * (HAND["pen"] * dice.normal(rows)).exp()
    owner = torch.arange(rows).view(-1, 1, 1).expand_as(drawn)[drawn].repeat_interleave(POINTS)
    start, end = path[..., :-1][drawn].flatten(), path[..., 1:][drawn].flatten()
    return (ink(start, end, owner, width[owner], rows) * 255).round().byte()[:, None]


def by_hand(program: Program, dice: Dice) -> Tensor:
    """The pen's way this time, in sides of the character: complex [R, STROKES, LEGS, POINTS+1]."""
    rows, legs = len(program.size), program.turn.shape
    care = (HAND["care"] * dice.normal(rows)).exp().view(-1, 1, 1)
    lattice = program.lattice + HAND["lattice"] * care[..., 0] * dice.shift(*program.lattice.shape)
    knots = lattice.gather(1, program.nodes.flatten(1)).view(program.nodes.shape)
    knots = knots + HAND["miss"] * care * dice.shift(*knots.shape)
    knots = _askew(knots, HAND["stroke"] * care, dice)
    turn = program.turn + HAND["bend"] * (program.turn * dice.normal(*legs) + care * dice.normal(*legs))
    path = arcs(knots, turn.clamp(-1.2 * SHARPEST, 1.2 * SHARPEST))
    astray = dice.normal(rows * STROKES, 2, 2 * LEGS + 1)  # a few errors on the way, and evenly from one to the next
    astray = interpolate(astray, LEGS * POINTS + 1, mode="linear", align_corners=True)
    astray = torch.complex(*astray.unbind(1)).view(rows, STROKES, -1).unfold(-1, POINTS + 1, POINTS)
    path = path + HAND["waver"] * care[..., None] * astray
    return _askew(path.flatten(1)[:, None], torch.tensor(HAND["slant"]), dice).view(path.shape)


def _askew(path: Tensor, amount: Tensor, dice: Dice) -> Tensor:
    """Turns, scales and shears each path [R, S, n] about its middle: z -> (1 + a) z + b z̄."""
    a, b = (amount * dice.shift(*path.shape[:2], 1) for _ in range(2))
    out = path - path.mean(-1, keepdim=True)
    return path + a * out + b * out.conj()
