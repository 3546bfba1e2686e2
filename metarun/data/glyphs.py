"""Glyphs: alphabets of handwritten-looking characters, generated, in the spirit of Omniglot.

An alphabet is a bundle of habits. A character is a program: a few strokes, each led from node to node of a small
lattice along legs that are straight or bent. A drawing is that program carried out by an unsteady hand, which
shakes the lattice, misses its nodes and wavers between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from metarun.data.draw.source import ImageData, Within, split_classes
from metarun.data.draw.split import Turning, in_words
from metarun.data.images.cache import cached
from metarun.data.images.characters import HABITS, Dice, Shape, programs
from metarun.data.images.collection import Recipe
from metarun.data.images.hand import HAND, drawn
from metarun.data.images.mapped import Resident
from metarun.types import COMPUTE_ONLY, AtLeast, Count, Natural, Seed, Span

VERSION = 1  # of the drawings: raise it when they change, so that caches do not keep the old ones


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
        shape = Shape(self.alphabets, self.characters, self.drawings)
        key = {"version": VERSION, "shape": shape, "seed": self.seed}
        collection = cached("glyphs", key, lambda: generate(*shape, self.seed))
        turned = {"train": self.rotations, "val": self.rotations, "test": False}
        protocol = {"split": shape.split_in_words(self.seed), "rotations": in_words(turned)}
        data = split_classes("glyphs", collection, shape.split(), turned, protocol, self.within, self.unlabelled)
        return data.to(device, self.resident)


def generate(alphabets: int, characters: int, drawings: int, seed: int) -> Recipe:
    """All of it, from habits to images."""
    shape, dice = Shape(alphabets, characters, drawings), Dice(torch.Generator().manual_seed(seed))
    shape.check_memory()
    return drawn(programs(shape, HABITS, dice), shape, HAND, dice)
