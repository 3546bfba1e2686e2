"""Tasks whose ways and shots vary, and images that come without their class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.data.draw.episodes import EpisodeSampler
from metarun.data.draw.source import split_classes
from metarun.data.draw.split import Turning
from metarun.data.images.collection import Collection
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.types import Span

Numbered = Callable[..., Collection]
CLASSES, IMAGES = 9, 8


def sampler(
    numbered: Numbered,
    ways: Span,
    shots: Span,
    queries: int = 2,
    unlabelled: int = 0,
    turned: Turning = False,
) -> EpisodeSampler:
    """Image m shows the number m, and is of class m // 8."""
    collection = numbered([IMAGES] * CLASSES)
    everything = {"train": range(CLASSES)}
    data = split_classes("numbers", collection, everything, {"train": turned}, {}, None, unlabelled)
    return data.episodes("train", ways, shots, queries)


def drawn(asked: EpisodeSampler, tasks: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images' numbers and their classes [T, rows], of support and query."""
    support, query = asked.gather(asked.draw(tasks, torch.Generator().manual_seed(0)))
    numbers = [(part.x[..., 0, 0, 0] * 255).round().long() for part in (support, query)]
    return numbers[0], support.y["class"], numbers[1], query.y["class"]


def test_each_task_has_ways_and_shots_of_its_own_all_equally_often(numbered: Numbered) -> None:
    _, y, _, asked = drawn(sampler(numbered, (2, 5), (1, 3)), 2000)
    found = []
    for task, queries in zip(y, asked, strict=True):
        counts = torch.bincount(task[task >= 0])
        assert (counts == counts[0]).all() and torch.bincount(queries[queries >= 0]).equal(counts * 0 + 2)
        found.append((len(counts), int(counts[0])))
    seen = {size: found.count(size) for size in found}
    assert seen.keys() == {(n, k) for n in range(2, 6) for k in range(1, 4)}
    assert all(abs(count - 2000 / 12) < 5 * (2000 / 12) ** 0.5 for count in seen.values())


def test_what_fills_a_task_up_are_its_own_rows_once_more_without_their_class(numbered: Numbered) -> None:
    for x, y in zip(*drawn(sampler(numbered, (2, 5), (1, 3)))[:2], strict=True):
        known = y >= 0
        assert set(x[~known].tolist()) <= set(x[known].tolist()) and len(set(x[known].tolist())) == known.sum()
        assert (y[~known] == -100).all()
    for x, y in zip(*drawn(sampler(numbered, (2, 5), 1))[2:], strict=True):
        assert set(x[y < 0].tolist()) <= set(x[y >= 0].tolist())


def test_a_way_is_one_class_in_support_and_query(numbered: Numbered) -> None:
    for x, y, query, asked in zip(*drawn(sampler(numbered, (2, 5), (1, 3))), strict=True):
        owner = {way: set((x[y == way] // IMAGES).tolist()) for way in y.unique().tolist() if way >= 0}
        assert all(len(classes) == 1 for classes in owner.values())
        assert all({number // IMAGES} == owner[way] for number, way in zip(query.tolist(), asked.tolist()) if way >= 0)
        assert not set(x.tolist()) & set(query.tolist())


def test_a_class_that_is_turned_for_its_task_is_turned_alike_where_it_fills_up(numbered: Numbered) -> None:
    asked = sampler(numbered, (2, 4), 1, turned="episode")
    draw = asked.draw(50, torch.Generator().manual_seed(0))
    ramps = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3).repeat(CLASSES * IMAGES, 1, 1, 1)
    x, y = EpisodeSampler(ramps, asked.split, asked.sizes, "ramps").gather(draw).support
    for task, known in zip(x.flatten(2), y["class"] >= 0, strict=True):
        turns = {tuple(image) for image in task[known].tolist()}
        assert all(tuple(image) in turns for image in task[~known].tolist())


def test_unlabelled_images_are_more_of_the_task_s_classes_and_come_last(numbered: Numbered) -> None:
    asked = sampler(numbered, 3, 2, queries=1, unlabelled=4)
    x, y, query, _ = drawn(asked)
    assert x.shape[1] == 3 * 6 and asked.heads["class"].gaps
    assert (y[:, :6] >= 0).all() and (y[:, 6:] == -100).all()
    assert all(len({*row, *queries}) == 21 for row, queries in zip(x.tolist(), query.tolist(), strict=True))
    assert (x.view(-1, 6, 3) // IMAGES == x[:, None, :3] // IMAGES).all()


def test_sizes_that_do_not_vary_draw_what_they_always_drew(numbered: Numbered) -> None:
    plain, span = sampler(numbered, 3, 2), sampler(numbered, (2, 3), (1, 2))
    one, other = (s.draw(5, torch.Generator().manual_seed(3)) for s in (plain, span))
    assert one.keys() == {"class", "image"} and other.keys() == {"class", "image", "ways", "shots"}
    assert all(one[key].equal(other[key]) for key in one)
    assert not plain.heads["class"].gaps and span.heads["class"].gaps and span.heads["class"].size == 3


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"ways": (3, 10), "shots": 1}, "data.ways=(3, 10) is more than the 9 classes of numbers's train split"),
        ({"ways": 3, "shots": (1, 7)}, "data.shots=7 with data.queries=2 needs 9 images per class; numbers has 8"),
        (
            {"ways": 3, "shots": 5, "unlabelled": 2},
            "data.shots=5 with data.queries=2 and data.unlabelled=2 needs 9 images per class; numbers has 8",
        ),
        ({"ways": 3, "shots": (1, 2), "unlabelled": 2}, "data.unlabelled=2 with data.shots=[1, 2]: what fills a task"),
    ],
)
def test_what_cannot_be_drawn_is_refused(keys: dict[str, int], told: str, numbered: Numbered) -> None:
    with pytest.raises(UserError) as error:
        sampler(numbered, **keys)  # type: ignore[arg-type]
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_tasks_of_a_regression_are_of_one_size() -> None:
    with pytest.raises(UserError, match=r"test.shots=\[1, 5\]: tasks of a regression are all of one size"):
        Sinusoid(1, 5, 5, 1.0, 2, 0).load(torch.device("cpu")).episodes("test", 1, (1, 5), 1, "test")
