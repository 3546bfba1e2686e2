from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarun.data.draw.rows import PartSampler, RowEpisodeSampler, Rows, RowSampler
from metarun.data.draw.source import split_classes
from metarun.data.images.collection import Collection
from metarun.types import Batch, Head

Numbered = Callable[..., Collection]
COUNTS = [5, 3, 8, 2, 4, 1, 6]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(x: Tensor) -> Tensor:
    """The images' numbers, which they show in every pixel."""
    return (x[..., 0, 0, 0] * 255).round().long()


def table(rows: int) -> tuple[Tensor, Rows]:
    """Image 2m shows the number 2m and is row m, with the targets m % 3 and m/10."""
    images = torch.arange(2 * rows, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 3, 3)
    m = torch.arange(rows)
    heads = {"third": Head("class", 3), "tenth": Head("value", 1)}
    return images, Rows(2 * m, torch.zeros_like(m), {"third": m % 3, "tenth": m[:, None] / 10}, heads)


def holds_its_targets(batch: Batch) -> bool:
    m = numbers(batch.x) // 2
    return batch.y["third"].equal(m % 3) and batch.y["tenth"].equal(m[..., None] / 10)


def dealt(rows: int, shots: int, queries: int) -> RowEpisodeSampler:
    return RowEpisodeSampler(*table(rows), shots, queries, "")


@pytest.mark.parametrize("turned", [False, True])
def test_the_rows_of_classes_are_their_images_and_no_padding(numbered: Numbered, turned: bool) -> None:
    collection = numbered(COUNTS)
    split = split_classes("numbers", collection, {"train": range(7)}, {"train": turned}, {}).splits["train"]
    rows, turns = Rows.of_classes(split), 4 if turned else 1
    assert rows.heads == {"all": Head("class", 7 * turns)}
    assert rows.image.equal(torch.arange(29).repeat(turns))
    assert rows.turns.equal(torch.arange(turns).repeat_interleave(29))
    assert rows.targets["all"].equal(collection.labels.repeat(turns) + 7 * rows.turns)


def test_a_draw_is_as_many_rows_as_tasks_times_shots_and_one_task_of_all_heads() -> None:
    drawn = RowSampler(*table(20), 7, "")
    draw = drawn.draw(3, seeded())
    assert {name: tuple(rows.shape) for name, rows in draw.items()} == {"row": (21,)}
    batch = drawn.gather(draw)
    assert batch.x.shape == (1, 21, 1, 3, 3)
    assert batch.y["third"].shape == (1, 21) and batch.y["tenth"].shape == (1, 21, 1)
    assert holds_its_targets(batch)


def test_slices_of_a_draw_are_slices_of_its_batch() -> None:
    drawn = RowSampler(*table(20), 9, "")
    draw = drawn.draw(1, seeded())
    whole, parts = drawn.gather(draw), [drawn.gather({"row": draw["row"][part]}) for part in (slice(5), slice(5, 9))]
    assert torch.cat([part.x for part in parts], 1).equal(whole.x)
    assert all(torch.cat([part.y[name] for part in parts], 1).equal(y) for name, y in whole.y.items())


def test_rows_are_drawn_uniformly() -> None:
    seen = torch.bincount(RowSampler(*table(30), 9000, "").draw(1, seeded())["row"], minlength=30).float()
    assert float(((seen - 300) ** 2 / 300).sum()) < 29 + 5 * 58**0.5


def test_the_same_seed_draws_the_same_rows_whatever_else_happens() -> None:
    state = torch.get_rng_state()
    for drawn in (RowSampler(*table(20), 7, ""), dealt(20, 2, 3)):
        one, other = (drawn.draw(3, seeded(5))["row"] for _ in range(2))
        assert one.equal(other) and not one.equal(drawn.draw(3, seeded(6))["row"])
    assert torch.get_rng_state().equal(state)


def test_support_and_query_are_rows_with_all_their_targets() -> None:
    drawn = dealt(20, 2, 3)
    episode = drawn.gather(drawn.draw(4, seeded()))
    assert episode.support.x.shape == (4, 2, 1, 3, 3) and episode.query.x.shape == (4, 3, 1, 3, 3)
    assert holds_its_targets(episode.support) and holds_its_targets(episode.query)


@pytest.mark.parametrize(("shots", "queries"), [(0, 5), (1, 4), (0, 20)])
def test_all_rows_are_dealt_once_where_the_tasks_need_as_many(shots: int, queries: int) -> None:
    row = dealt(20, shots, queries).draw(20 // (shots + queries), seeded())["row"]
    assert sorted(row.flatten().tolist()) == list(range(20))


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 7, 50])
def test_no_row_is_dealt_twice_before_another_was_dealt_nor_twice_to_a_task(tasks: int) -> None:
    row = dealt(23, 2, 4).draw(tasks, seeded())["row"]  # 3 tasks, and 5 rows left over
    assert row.shape == (tasks, 6)
    assert all(len(set(task)) == 6 for task in row.tolist())
    for pack in row.split(3):
        assert len(pack.unique()) == pack.numel()


def test_a_task_may_have_nothing_to_learn_from() -> None:
    drawn = dealt(20, 0, 5)
    episode = drawn.gather(drawn.draw(4, seeded()))
    assert episode.support.x.shape == (4, 0, 1, 3, 3)
    assert {name: tuple(y.shape) for name, y in episode.support.y.items()} == {"third": (4, 0), "tenth": (4, 0, 1)}
    assert holds_its_targets(episode.query)


def test_without_shots_no_row_is_dealt_twice() -> None:
    row = dealt(23, 0, 5).draw(100, seeded())["row"]
    assert row.shape == (4, 5) and len(row.unique()) == 20


@pytest.mark.parametrize(("parts", "count"), [((40,), 40), ((1500,), 9), ((40, 20, 70), 9), ((5000, 1500, 2000), 30)])
def test_training_draws_different_rows_of_one_part_for_each_task_and_every_row_as_often(
    parts: tuple[int, ...], count: int
) -> None:
    """Of few rows and of many; and in every place of a task."""
    sampler = RowEpisodeSampler(torch.zeros(sum(parts), 2), in_parts(*parts)[1], 3, count - 3, "", torch.tensor(parts))
    generator, tasks = seeded(), 3000
    row = sampler.draw(tasks, generator)["row"]
    assert row.shape == (tasks, count) and all(len(set(task)) == count for task in row.tolist())
    ends = torch.tensor(parts).cumsum(0)
    owner = torch.bucketize(row, ends, right=True)
    assert owner.eq(owner[:, :1]).all() and torch.bincount(owner[:, 0]).tolist() == [tasks // len(parts)] * len(parts)
    for part, (size, end) in enumerate(zip(parts, ends.tolist(), strict=True)):
        place = (row[owner[:, 0] == part, :3] - (end - size)).flatten()
        tenths = torch.bincount(place * 10 // size, minlength=10).double()
        expected = torch.bincount(torch.arange(size) * 10 // size).double() * len(place) / size
        assert float(((tenths - expected) ** 2 / expected).sum()) < 9 + 5 * 18**0.5
    one = [int(sampler.draw(1, generator)["row"][0, 0]) for _ in range(12 * len(parts))]
    assert len(torch.bucketize(torch.tensor(one), ends, right=True).unique()) == len(parts)


def in_parts(*parts: int) -> tuple[Tensor, Rows]:
    images, rows = table(sum(parts))
    return images, replace(rows, parts=parts)


@pytest.mark.parametrize(("tasks", "of_each"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (3, [1, 1, 1]), (40, [4, 2, 2])])
def test_a_task_has_rows_of_one_part_and_each_part_as_many_tasks(tasks: int, of_each: list[int]) -> None:
    row = RowEpisodeSampler(*in_parts(20, 12, 11), 0, 5, "").draw(tasks, seeded())["row"]
    owner = torch.bucketize(row, torch.tensor([20, 32]), right=True)
    assert owner.eq(owner[:, :1]).all() and torch.bincount(owner[:, 0]).tolist() == of_each
    assert len(row.unique()) == row.numel()


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_fixed_tasks_have_rows_of_their_own_in_the_same_order_always(count: int) -> None:
    drawn = PartSampler(*in_parts(20, 2, 11), torch.tensor([20, 2, 11]), 400, "")
    draw = drawn.draw(count, seeded())
    owner = torch.bucketize(draw["row"], torch.tensor([20, 22]), right=True)
    assert owner.shape == (min(count, 3), 400) and owner.eq(owner[:, :1]).all()
    assert owner[:, 0].equal(owner[:, 0].unique())
    if count >= 3:
        assert len(draw["row"].unique()) == 33
    batch = drawn.gather(draw)
    assert batch.x.shape == (min(count, 3), 400, 1, 3, 3) and holds_its_targets(batch)


def test_vectors_are_drawn_as_they_are() -> None:
    vectors, rows = torch.randn(20, 4), table(10)[1]
    drawn = RowSampler(vectors, rows, 6, "")
    draw = drawn.draw(1, seeded())
    assert drawn.gather(draw).x.equal(vectors[2 * draw["row"]][None])
