from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.data import glyphs_multi as module
from metarun.data.draw.source import ImageData
from metarun.data.glyphs_multi import USUAL, generate, manners
from metarun.data.images.characters import Dice, Shape
from metarun.data.mnist_tasks import _ink, _slant
from metarun.errors import UserError
from metarun.types import Batch, Episode, Head

CPU = torch.device("cpu")
SHAPE = Shape(alphabets=6, characters=4, drawings=6)
Load = Callable[..., ImageData]


@pytest.fixture
def small(configured: Callable[..., Any]) -> Load:
    """The YAML's data set, but small."""
    return lambda **keys: configured("glyphs_multi", **{**SHAPE._asdict(), **keys}).load(CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(data: ImageData, split: str = "train", ways: Any = 3, shots: Any = 2, queries: int = 2) -> Episode:
    sampler = data.episodes(split, ways, shots, queries)
    return sampler.gather(sampler.draw(5, seeded()))


def numbers(batch: Batch, data: ImageData) -> Tensor:
    """The number of each image of a batch, found by its pixels: no drawing is there twice."""
    assert isinstance(data.images, Tensor)
    pixels = (batch.x.flatten(0, 1).flatten(1) * 255).round()
    same = (pixels[:, None] == data.images.flatten(1)).all(2)
    assert same.sum(1).eq(1).all()
    return same.float().argmax(1).view(batch.x.shape[:2])


def test_what_is_told_is_how_far_a_drawing_is_from_what_is_usual_in_its_alphabet() -> None:
    """Mean 0 and variance 1 within each alphabet, and a straight line of what is shown; usual is not the same twice."""
    shape = Shape(30, 20, 20)
    for name, found in manners(shape, Dice(seeded())).items():
        shown, told = (values.view(30, -1).double() for values in found)
        assert told.mean(1).abs().max() < 4 * 400**-0.5 and (told.std(1) - 1).abs().max() < 0.15
        spread = shown.std(1) / told.std(1)
        usual = shown.mean(1) - spread * told.mean(1)
        torch.testing.assert_close(usual[:, None] + spread[:, None] * told, shown, atol=1e-5, rtol=0)
        low, high = USUAL[name]
        assert low <= usual.min() and usual.max() <= high and usual.std() > 1.3 * spread.mean() > 0


def test_drawings_show_the_slant_and_the_pen_that_are_told_of_them() -> None:
    """Of one and the same program, as drawn by an idle hand: the slant of its moments, and its ink."""
    shape = Shape(3, 12, 30)
    images = generate(shape, 0).in_memory().images[:, 0].double()
    found = manners(shape, Dice(seeded()))
    of_character = {"slant": _slant(images), "pen": _ink(images)}
    for name, measured in of_character.items():
        pairs = zip(found[name][0].view(-1, 30).double(), measured.view(-1, 30), strict=True)
        correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
        assert correlation.mean() > 0.5 and (correlation > 0.2).float().mean() > 0.8


def test_the_same_seed_gives_the_same_images_and_values_and_another_seed_others() -> None:
    one, again, other = (generate(SHAPE, seed).in_memory() for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert not torch.equal(manners(SHAPE, Dice(seeded(0)))["pen"][1], manners(SHAPE, Dice(seeded(1)))["pen"][1])


def test_values_are_known_without_a_drawing(small: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small()
    monkeypatch.setattr(module, "generate", lambda *_: pytest.fail("drawn anew"))
    again = small(heads=["pen"], within=None)
    assert all(again.values[name].equal(value) for name, value in first.values.items())


def test_whole_alphabets_are_dealt_to_the_splits(small: Load) -> None:
    groups = [set(split.groups) for split in small().splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == SHAPE.alphabets


def test_rows_and_episodes_tell_the_same_of_an_image(small: Load) -> None:
    data = small()
    sampler = data.tasks("rows", 40)
    rows = sampler.gather(sampler.draw(1, seeded()))
    assert sampler.heads == {"class": Head("class", 12), "slant": Head("value", 1), "pen": Head("value", 1)}
    for batch in (rows, *drawn(data)):
        image = numbers(batch, data)
        for name, values in data.values.items():
            assert batch.y[name].equal(values[image][..., None])
    assert rows.y["class"].equal(numbers(rows, data) // SHAPE.drawings)


def test_an_episode_is_of_one_alphabet_and_its_drawings_are_all_different(small: Load) -> None:
    data = small()
    support, query = drawn(data)
    image = torch.cat([numbers(part, data) for part in (support, query)], 1)
    alphabet = image // (SHAPE.characters * SHAPE.drawings)
    assert alphabet.eq(alphabet[:, :1]).all() and all(len(set(task)) == 12 for task in image.tolist())
    assert support.y["class"].equal(torch.arange(3).repeat(5, 2))


@pytest.mark.parametrize("heads", [["slant"], ["pen", "class"], ["class"]])
def test_heads_are_those_asked_for_and_the_first_chooses_the_model(small: Load, heads: list[str]) -> None:
    """Their targets are what they are beside the others, too."""
    data, everything = small(heads=heads), drawn(small(), queries=1)
    metrics = {"slant": "mse", "pen": "pen/mse", "class": "accuracy"}
    assert (data.metric, data.offers) == (metrics[heads[0]], ("episodes", "rows"))
    assert list(data.episodes("train", 3, 2, 1).heads) == list(data.tasks("rows", 4).heads) == heads
    for part, of_all in zip(drawn(data, queries=1), everything, strict=True):
        assert [*part.y] == heads and part.x.equal(of_all.x)
        assert all(part.y[name].equal(of_all.y[name]) for name in heads)


def test_where_tasks_are_filled_up_values_are_missing_too(small: Load) -> None:
    data = small()
    sampler = data.episodes("train", (2, 4), (1, 3), 1)
    assert all(head.gaps for head in sampler.heads.values())
    for batch in sampler.gather(sampler.draw(20, seeded())):
        missing = batch.y["class"] < 0
        assert missing.any() and not missing.all()
        for name in ("slant", "pen"):
            assert batch.y[name].isnan()[..., 0].equal(missing)


def test_fingerprints_tell_heads_apart(small: Load) -> None:
    data = [small(heads=heads) for heads in (["class"], ["slant"], ["slant", "pen"], ["pen", "slant"])]
    assert len({one.episodes("test", 3, 1, 1).fingerprint for one in data}) == 4


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (["class", "slantt"], "data.heads: there is no head slantt. Did you mean slant?"),
        ([], "data.heads=[] names no head. There are: class, pen, slant."),
    ],
)
def test_heads_that_cannot_be_are_refused(small: Load, heads: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        small(heads=heads)
    assert str(error.value) == message


def test_fixed_tasks_are_refused(small: Load) -> None:
    with pytest.raises(UserError, match=r"^algo\.trains_on=group: data=glyphs_multi offers episodes and rows\."):
        small().tasks("group", 4)
