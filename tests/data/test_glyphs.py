from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.data import glyphs as module
from metarun.data.draw.source import ImageData
from metarun.data.glyphs import Glyphs, generate
from metarun.data.images.characters import Shape
from metarun.data.images.collection import Collection
from metarun.data.images.strokes import POINTS, arcs, ink

CPU = torch.device("cpu")
ALPHABETS, CHARACTERS, DRAWINGS = 6, 8, 6


@pytest.fixture(scope="module")
def few() -> Collection:
    return generate(ALPHABETS, CHARACTERS, DRAWINGS, seed=0).in_memory()


@pytest.fixture
def small(configured: Callable[..., Any]) -> Callable[..., Glyphs]:
    """The YAML's data set, but small."""
    size = {"alphabets": ALPHABETS, "characters": 2, "drawings": 3}
    return lambda **keys: configured("glyphs", **{**size, **keys})


def line(start: complex, end: complex, width: float) -> Tensor:
    """The ink of one straight stroke."""
    way = torch.linspace(0, 1, 25) * (end - start) + start
    return ink(way[:-1], way[1:], torch.zeros(24, dtype=torch.long), torch.full((24,), width), 1)[0]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(few: Collection) -> None:
    assert generate(ALPHABETS, CHARACTERS, DRAWINGS, seed=0).in_memory().fingerprint == few.fingerprint
    other = generate(ALPHABETS, CHARACTERS, DRAWINGS, seed=1).in_memory().images
    assert (other != few.images).flatten(1).any(1).all()


def test_the_global_generator_is_neither_read_nor_moved(few: Collection) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert generate(ALPHABETS, CHARACTERS, DRAWINGS, seed=0).in_memory().fingerprint == few.fingerprint
    assert torch.equal(torch.get_rng_state(), before)


def test_every_drawing_is_told_of(told: list[tuple[str, int, int]]) -> None:
    list(generate(4, 8, 40, seed=0).pieces)
    assert told == [("drawing glyphs", 1280, 1280)]


def test_images_are_bytes_with_thin_strokes_inside_the_paper(few: Collection) -> None:
    assert few.images.shape == (ALPHABETS * CHARACTERS * DRAWINGS, 1, 28, 28)
    assert few.images.dtype == torch.uint8
    ink = few.images.flatten(1) / 255.0
    assert ink.mean(1).min() > 0.02 and ink.mean(1).max() < 0.5
    assert 0.05 < ink.mean() < 0.12  # Omniglot: 0.084
    assert (ink.amax(1) > 0.9).all()
    frame = few.images.clone()
    frame[..., 1:-1, 1:-1] = 0
    assert frame.sum() < 0.02 * few.images.sum()


def test_every_character_has_its_drawings_its_name_and_its_alphabet(few: Collection) -> None:
    assert torch.equal(torch.bincount(few.labels), torch.full((ALPHABETS * CHARACTERS,), DRAWINGS))
    assert len(set(few.names)) == ALPHABETS * CHARACTERS
    assert [few.groups.count(group) for group in sorted(set(few.groups))] == [CHARACTERS] * ALPHABETS
    assert all(name.startswith(f"{group}/") for name, group in zip(few.names, few.groups))


def test_no_drawing_is_there_twice(few: Collection) -> None:
    assert len(few.images.flatten(1).unique(dim=0)) == len(few.images)


def test_drawings_of_a_character_resemble_each_other_as_handwriting_does() -> None:
    """Nearest neighbour on raw pixels, 5-way 1-shot: Omniglot's 0.45 is far from chance, and as far from easy."""
    drawings = generate(20, 8, 2, seed=3).in_memory().images.float().view(-1, 2, 28 * 28)
    generator = torch.Generator().manual_seed(0)
    ways = torch.rand(500, len(drawings), generator=generator).topk(5).indices
    distance = torch.cdist(drawings[ways, 0], drawings[ways, 1])
    accuracy = (distance.argmin(1) == torch.arange(5)).float().mean()
    assert 0.35 < accuracy < 0.65
    own = torch.eye(5, dtype=torch.bool).expand_as(distance)
    assert distance[own].mean() < 0.95 * distance[~own].mean()


@pytest.mark.parametrize("width", [0.6, 1.0, 1.43, 2.0])
@pytest.mark.parametrize("degrees", [0, 30, 45, 90])
def test_the_ink_of_a_straight_stroke_is_its_length_times_its_width(degrees: int, width: float) -> None:
    """∫ min(w, 1, w/2 + 1/2 − |d|)₊ dd = w across a stroke. Its two ends, the same for all lengths, are subtracted,
    and where it lies between the pixels is averaged out.
    """
    way = torch.polar(torch.tensor(1.0), torch.tensor(math.radians(degrees))).item()
    phases = [complex(14 + x / 4, 14 + y / 4) for x in range(4) for y in range(4)]
    short, long = (
        sum(line(at - way * half, at + way * half, width).sum() for at in phases) / len(phases) for half in (3, 8)
    )
    assert long - short == pytest.approx(10 * width, rel=0.02)


def test_a_stroke_that_leaves_the_paper_leaves_no_mark_elsewhere() -> None:
    marks = line(5 - 10j, 5 + 40j, 1.0)
    assert marks[:, 5].min() > 0.999
    marks[:, 4:7] = 0
    assert not marks.any()
    assert not line(-20 + 5j, -10 + 5j, 1.0).any()


def test_segments_mark_their_owners_image_only() -> None:
    at = torch.tensor([8 + 8j, 20 + 20j])
    marks = ink(at, at, torch.tensor([2, 0]), torch.ones(2), 3)
    assert marks[2, 8, 8] == 1 and marks[0, 20, 20] == 1
    assert torch.equal(marks.amax((1, 2)), torch.tensor([1.0, 0.0, 1.0]))
    assert marks[2, 20, 20] == 0 and marks[0, 8, 8] == 0


@pytest.mark.parametrize("turn", [0.0, 0.5, -1.5, math.pi, -4.0])
def test_a_leg_is_an_arc_from_knot_to_knot_that_turns_as_told(turn: float) -> None:
    knots = torch.tensor([1 + 2j, 4 - 1j])
    way = arcs(knots, torch.tensor([turn]))[0]
    assert torch.allclose(way[[0, -1]], knots, atol=1e-4)
    steps = way.diff()
    assert torch.allclose(steps.abs(), steps.abs().mean(), rtol=1e-3)
    turned = (steps[1:] / steps[:-1]).angle().sum()
    assert float(turned) == pytest.approx(turn * (POINTS - 1) / POINTS, abs=2e-3)


def test_whole_alphabets_are_dealt_to_the_splits(small: Callable[..., Glyphs]) -> None:
    data: ImageData = small().load(CPU)
    groups = [set(split.groups) for split in data.splits.values()]
    assert list(data.splits) == ["train", "val", "test"]
    assert sum(map(len, groups)) == len(set.union(*groups)) == ALPHABETS
    rows = [set(split.rows.flatten().tolist()) for split in data.splits.values()]
    assert sum(map(len, rows)) == len(set.union(*rows)) == len(data.images)


def test_default_shares_are_omniglots(configured: Callable[..., Any]) -> None:
    glyphs = configured("glyphs")
    sizes = [len(part) for part in Shape(glyphs.alphabets, glyphs.characters, glyphs.drawings).split().values()]
    assert [round(size / sum(sizes), 2) for size in sizes] == [0.68, 0.06, 0.26]


@pytest.mark.parametrize("rotations", [True, False])
def test_rotations_make_classes_in_train_and_val_but_never_in_test(
    small: Callable[..., Glyphs], rotations: bool
) -> None:
    data = small(rotations=rotations).load(CPU)
    turns = {name: sorted(set(split.turns.tolist())) for name, split in data.splits.items()}
    turned = [0, 1, 2, 3] if rotations else [0]
    assert turns == {"train": turned, "val": turned, "test": [0]}
    assert ("90°" in data.protocol["rotations"]) == rotations
    assert "by alphabet: 6/2/4 characters" in data.protocol["split"]


def test_classes_that_each_episode_turns_are_as_many_as_characters(small: Callable[..., Glyphs]) -> None:
    data = small(rotations="episode").load(CPU)
    assert {name: len(split.counts) for name, split in data.splits.items()} == {"train": 6, "val": 2, "test": 4}
    generator = torch.Generator().manual_seed(0)
    draws = {name: data.episodes(name, 2, 1, 1).draw(99, generator) for name in data.splits}
    assert ["turn" in draws[name] for name in ("train", "val", "test")] == [True, True, False]
    assert data.protocol["rotations"].startswith("a random quarter turn for each class of an episode in training")


def test_what_is_loaded_again_comes_from_the_cache(
    small: Callable[..., Glyphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small().load(CPU)

    def refuse(*_: object) -> Collection:
        raise AssertionError("drawn anew")

    monkeypatch.setattr(module, "generate", refuse)
    assert torch.equal(small(rotations=False).load(CPU).images, first.images)
    with pytest.raises(AssertionError, match="drawn anew"):
        small(seed=1).load(CPU)
    with pytest.raises(AssertionError, match="drawn anew"):
        small(drawings=4).load(CPU)


def test_three_alphabets_are_enough(small: Callable[..., Glyphs]) -> None:
    data = small(alphabets=3).load(CPU)
    assert [len(set(split.groups)) for split in data.splits.values()] == [1, 1, 1]
