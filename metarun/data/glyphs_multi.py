"""Glyphs with three targets a drawing: which character it is, how far it slants, and how wide its pen was.

An alphabet has a usual slant and a usual pen, and a spread of each. Every drawing gets a slant and a pen of its own,
drawn around what is usual in its alphabet: the slant shears the whole of it (more than 0: the top leans to the right,
as italics do), the pen is a width in pixels. The character has no part in either.

Both values are told as a reader of that alphabet would tell them: (value − μ) / σ, how far from what is usual there, in
units of the spread there. So they are about as large in every alphabet, and a drawing alone does not tell them: what is
upright in one alphabet leans in the next. No network can know μ and σ of an alphabet it never saw; it has to find them
from the drawings that it is given to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from metarun.data.draw.named import picked
from metarun.data.draw.source import ImageData, Within, split_classes
from metarun.data.images.cache import cached
from metarun.data.images.characters import HABITS, Dice, Shape, programs
from metarun.data.images.collection import Recipe
from metarun.data.images.hand import HAND, drawn
from metarun.data.images.mapped import Resident
from metarun.types import COMPUTE_ONLY, AtLeast, Count, Seed, Span

VERSION = 1  # of the drawings: raise it when they change, so that caches do not keep the old ones
UPRIGHT = {  # characters whose slant is seen
    **HABITS,
    "strokes": (1.2, 2.4),
    "loose": (0.0, 0.05),
    "upright": (5.0, 12.0),
    "straight": (0.4, 0.9),
    "size": (16.0, 21.0),
}
STEADY = {**HAND, "slant": 0.03, "pen": 0.0}  # what is told of a drawing is what it shows
MOST = 2.5  # standard deviations of a drawing from what is usual: beyond, it could hardly be read

# Each alphabet draws its own between the two.
USUAL = {"slant": (-0.4, 0.7), "pen": (0.8, 2.1)}  # a tangent; pixels
SPREAD = {"slant": (0.15, 0.3), "pen": (0.08, 0.18)}  # of the slant; of the pen, in units of what is usual
HEADS = ("class", *USUAL)


@dataclass(frozen=True)
class GlyphsMulti:
    """Strokes are 1, paper is 0. No class is turned, which would change the slant."""

    heads: Sequence[str]
    alphabets: Annotated[int, AtLeast(3)]  # one for each split
    characters: Count  # of an alphabet
    drawings: Annotated[int, AtLeast(2)]  # of a character
    seed: Seed
    ways: Span
    shots: Span
    queries: Count
    within: Within
    resident: Annotated[Resident, COMPUTE_ONLY]

    def load(self, device: torch.device) -> ImageData:
        asked = tuple(picked("data.heads", self.heads, HEADS, "head"))
        shape = Shape(self.alphabets, self.characters, self.drawings)
        key = {"version": VERSION, "shape": shape, "seed": self.seed}
        collection = cached("glyphs_multi", key, lambda: generate(shape, self.seed))
        told = {name: value for name, (_, value) in manners(shape, _dice(self.seed)).items()}
        classes = shape.split()
        protocol = {"split": shape.split_in_words(self.seed), "rotations": "none"}
        upright = dict.fromkeys(classes, False)
        data = split_classes("glyphs_multi", collection, classes, upright, protocol, self.within)
        return replace(data, values=told, asked=asked).to(device, self.resident)


def generate(shape: Shape, seed: int) -> Recipe:
    """All of it, from habits to images."""
    shape.check_memory()
    dice = _dice(seed)
    shown = {name: value for name, (value, _) in manners(shape, dice).items()}
    return drawn(programs(shape, UPRIGHT, dice)._replace(**shown), shape, STEADY, dice)


def manners(shape: Shape, dice: Dice) -> dict[str, tuple[Tensor, Tensor]]:
    """By name, each drawing's slant and pen [M], and what is told of it [M].

    They are the first that is drawn of a seed, so that to know them needs no drawing.
    """
    each = shape.characters * shape.drawings
    found = {}
    for name, (low, high) in USUAL.items():
        least, most = SPREAD[name]
        usual = low + (high - low) * dice.uniform(shape.alphabets)
        spread = least + (most - least) * dice.uniform(shape.alphabets)
        if name == "pen":
            spread = spread * usual
        told = dice.normal(shape.alphabets, each).clamp(-MOST, MOST)
        found[name] = ((usual[:, None] + spread[:, None] * told).flatten(), told.flatten())
    return found


def _dice(seed: int) -> Dice:
    return Dice(torch.Generator().manual_seed(seed))
