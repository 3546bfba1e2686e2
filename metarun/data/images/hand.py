"""An unsteady hand: it shakes the lattice of a character, misses its nodes and wavers between them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metarun.data.images.characters import LEGS, SHARPEST, STROKES, Dice, Program, Shape
from metarun.data.images.collection import Recipe
from metarun.data.images.strokes import POINTS, SIZE, arcs, ink
from metarun.engine.progress import watched

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
CENTRE = 13.1 + 13.0j  # pixels, as measured on Omniglot
CHUNK = 1024  # drawings rendered at once: bounds memory


def drawn(program: Program, shape: Shape, hand: Mapping[str, float], dice: Dice) -> Recipe:
    """Each drawing of the program once, with the names of characters and alphabets."""
    chunks = zip(*(part.split(CHUNK) for part in program), strict=True)
    pieces = watched((draw(Program(*chunk), hand, dice) for chunk in chunks), len(program.size), "drawing glyphs", len)
    groups = [f"alphabet{a:03}" for a in range(shape.alphabets) for _ in range(shape.characters)]
    names = [f"{group}/character{c % shape.characters:03}" for c, group in enumerate(groups)]
    labels = torch.arange(len(names)).repeat_interleave(shape.drawings)
    return Recipe(pieces, (1, SIZE, SIZE), labels, tuple(names), tuple(groups))


def draw(program: Program, hand: Mapping[str, float], dice: Dice) -> Tensor:
    """A fresh drawing of every row of the program: uint8 [R, 1, SIZE, SIZE]."""
    rows, drawn = len(program.size), program.drawn
    path = by_hand(program, hand, dice)
    path = path - program.slant.view(-1, 1, 1, 1) * path.imag
    xy = torch.view_as_real(path).flatten(1, 3)
    marks = drawn[..., None].expand(path.shape).flatten(1)[..., None]
    low, high = torch.where(marks, xy, torch.inf).amin(1), torch.where(marks, xy, -torch.inf).amax(1)
    middle = torch.view_as_complex((low + high) / 2)
    scale = program.size * (hand["size"] * dice.normal(rows)).exp() / (high - low).amax(1).clamp(min=0.15)
    home = CENTRE + hand["place"] * dice.shift(rows)
    path = (path - middle.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1) + home.view(-1, 1, 1, 1)
    width = program.pen * (hand["pen"] * dice.normal(rows)).exp()
    owner = torch.arange(rows).view(-1, 1, 1).expand_as(drawn)[drawn].repeat_interleave(POINTS)
    start, end = path[..., :-1][drawn].flatten(), path[..., 1:][drawn].flatten()
    return (ink(start, end, owner, width[owner], rows) * 255).round().byte()[:, None]


def by_hand(program: Program, hand: Mapping[str, float], dice: Dice) -> Tensor:
    """The pen's way this time, in sides of the character: complex [R, STROKES, LEGS, POINTS+1]."""
    rows, legs = len(program.size), program.turn.shape
    care = (hand["care"] * dice.normal(rows)).exp().view(-1, 1, 1)
    lattice = program.lattice + hand["lattice"] * care[..., 0] * dice.shift(*program.lattice.shape)
    knots = lattice.gather(1, program.nodes.flatten(1)).view(program.nodes.shape)
    knots = knots + hand["miss"] * care * dice.shift(*knots.shape)
    knots = _askew(knots, hand["stroke"] * care, dice)
    turn = program.turn + hand["bend"] * (program.turn * dice.normal(*legs) + care * dice.normal(*legs))
    path = arcs(knots, turn.clamp(-1.2 * SHARPEST, 1.2 * SHARPEST))
    astray = dice.normal(rows * STROKES, 2, 2 * LEGS + 1)  # a few errors on the way, and evenly from one to the next
    astray = interpolate(astray, LEGS * POINTS + 1, mode="linear", align_corners=True)
    astray = torch.complex(*astray.unbind(1)).view(rows, STROKES, -1).unfold(-1, POINTS + 1, POINTS)
    path = path + hand["waver"] * care[..., None] * astray
    return _askew(path.flatten(1)[:, None], torch.tensor(hand["slant"]), dice).view(path.shape)


def _askew(path: Tensor, amount: Tensor, dice: Dice) -> Tensor:
    """Turns, scales and shears each path [R, S, n] about its middle: z -> (1 + a) z + b z̄."""
    a, b = (amount * dice.shift(*path.shape[:2], 1) for _ in range(2))
    out = path - path.mean(-1, keepdim=True)
    return path + a * out + b * out.conj()
